"""Every byte that crosses the switch while a test looks: to show that no secret does."""

from __future__ import annotations

import socket
import threading
from types import TracebackType
from typing import Self

from tests.lab.home import Home

ETH_P_ALL = 0x0003
SOCKET_BUFFER = 32 * 2**20
SO_RCVBUFFORCE = 33


class Capture:
    """Use as a context; then ask whether bytes were seen. Made for short spans, it keeps all in memory."""

    def __init__(self, home: Home) -> None:
        self._packets: list[bytes] = []
        self._socket = home.switch.enter(self._open)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, name="capture")

    @staticmethod
    def _open() -> socket.socket:
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        raw.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, SOCKET_BUFFER)
        raw.settimeout(0.1)
        return raw

    def _read(self) -> None:
        while not self._stop.is_set():
            try:
                self._packets.append(self._socket.recv(2**17))
            except TimeoutError:
                continue

    @property
    def size(self) -> int:
        return sum(map(len, self._packets))

    def saw(self, content: bytes) -> bool:
        """Whether some single packet held `content`."""
        return any(content in packet for packet in self._packets)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()
