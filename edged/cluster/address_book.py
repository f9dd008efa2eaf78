"""Where the coordinator may be reached: as the user said, as mDNS says, as it was the last time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Self

from edged.errors import EdgedError, PeerLostError, SettingsError
from edged.private_file import write_private
from edged.rpc.channel import shown

log = logging.getLogger(__name__)


MOST_SEEN = 8  # anybody can announce anything, and each address that does not answer costs seconds


class Address(NamedTuple):
    """Host (name or IP address, without brackets) and port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """`HOST:PORT` or `[IPv6]:PORT`. Raises SettingsError."""
        host, colon, port = text.strip().rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        if not colon or not bare or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            raise SettingsError(f"{text!r} is not an address: write HOST:PORT, as in 192.168.1.5:4242")
        if ":" in bare and not host.startswith("["):
            raise SettingsError(f"{text!r} is ambiguous: write an IPv6 address as [ADDRESS]:PORT")
        return cls(bare, int(port))

    def __str__(self) -> str:
        return shown(self.host, self.port)


class AddressBook:
    """Addresses of one device; the one that worked last is kept in the file `path`. Thread-safe."""

    def __init__(self, path: Path, given: Address | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._given = given
        self._seen: tuple[Address, ...] = ()
        self._worked = _read(path)

    def see(self, hosts: Iterable[str], port: int) -> bool:
        """Takes what mDNS says now; whether that is news."""
        seen = tuple(Address(host, port) for host in hosts)[:MOST_SEEN]
        with self._lock:
            news = seen != self._seen
            self._seen = seen
        return news

    def candidates(self) -> tuple[Address, ...]:
        """In the order in which to try them, each once."""
        with self._lock:
            worked = (self._worked,) if self._worked else ()
            given = (self._given,) if self._given else ()
            return tuple(dict.fromkeys((*given, *self._seen, *worked)))

    def likeliest(self) -> Address:
        """The address that worked last, or else the first candidate. Raises PeerLostError without any."""
        with self._lock:
            worked = self._worked
        address = worked or next(iter(self.candidates()), None)
        if address is None:
            raise PeerLostError("the coordinator's address is not known yet")
        return address

    def worked(self, address: Address) -> None:
        """Remembers an address that worked. If the disk refuses, that is only logged."""
        with self._lock:
            if address == self._worked:
                return
            self._worked = address
        try:
            write_private(self._path, str(address).encode())
        except EdgedError as error:
            log.warning("the coordinator's address could not be kept: %s", error.message)


def _read(path: Path) -> Address | None:
    try:
        return Address.parse(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, SettingsError):
        return None  # a hint that cannot be read is no hint
