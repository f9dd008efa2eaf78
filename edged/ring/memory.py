"""Links inside one process: the twin of the gRPC transport, with the same codec and the same rules."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from edged.errors import EdgedError, FrameError, RingBrokenError
from edged.ring.codec import FrameFormat
from edged.ring.frame import Frame
from edged.ring.outbox import Outbox
from edged.ring.reception import Reception, Visit
from edged.ring.transport import Endpoint, Link, OnBroken

DRAIN_S = 1.0  # a closing link may send this long; a ring that closes needs none of it


class MemoryNetwork:
    """Devices that can reach each other, by name."""

    def __init__(self) -> None:
        self._devices: dict[str, Reception] = {}
        self._links: dict[tuple[str, str], list[MemoryLink]] = {}

    def transport(self, device: str) -> MemoryTransport:
        reception = self._devices.setdefault(device, Reception())
        return MemoryTransport(device, self, reception)

    def cut(self, sender: str, device: str) -> None:
        """Break the links from `sender` to `device`, as a pulled cable would."""
        for link in self._links.pop((sender, device), []):
            link.sever()

    def join(self, sender: str, device: str, epoch: int, link: MemoryLink) -> None:
        """Let `link` carry frames. Raises RingBrokenError where `device` is not there or refuses."""
        reception = self.reception(device)
        try:
            visit = reception.admit(sender, epoch, link.sever)
        except EdgedError as error:
            raise RingBrokenError(f"{device} refuses the ring's link: {error.message}") from None
        self._links.setdefault((sender, device), []).append(link)
        link.start(reception, visit)

    def reception(self, device: str) -> Reception:
        """Raises RingBrokenError where nothing of that name is there."""
        try:
            return self._devices[device]
        except KeyError:
            raise RingBrokenError(f"no device {device} in this process") from None


class MemoryTransport:
    """One device's access to a MemoryNetwork."""

    def __init__(self, device: str, network: MemoryNetwork, reception: Reception) -> None:
        self._device = device
        self._network = network
        self._reception = reception

    def attach(self, endpoint: Endpoint) -> None:
        self._reception.attach(endpoint)

    def detach(self, epoch: int) -> None:
        self._reception.detach(epoch)

    def connect(self, device: str, epoch: int, form: FrameFormat, capacity: int, on_broken: OnBroken) -> Link:
        link = MemoryLink(device, Outbox(form, capacity), on_broken)
        self._network.join(self._device, device, epoch, link)
        return link


class MemoryLink:
    """A thread that carries frames from an outbox to an endpoint."""

    def __init__(self, device: str, outbox: Outbox, on_broken: OnBroken) -> None:
        self._device = device
        self._outbox = outbox
        self._on_broken = on_broken
        self._lock = threading.Lock()
        self._over = False
        self._thread: threading.Thread | None = None

    @property
    def device(self) -> str:
        return self._device

    @property
    def bytes_sent(self) -> Mapping[int, int]:
        return self._outbox.bytes_sent

    def start(self, reception: Reception, visit: Visit) -> None:
        name = f"ring-link-{visit.sender}-{self._device}"
        self._thread = threading.Thread(target=self._carry, args=(reception, visit), name=name)
        self._thread.start()

    def send(self, frame: Frame) -> None:
        self._outbox.put(frame)

    def sever(self) -> None:
        """The other end has left the ring, or the way to it is gone. Never blocks."""
        self._break(RingBrokenError(f"lost the ring's link to {self._device}"))

    def abandon(self) -> None:
        with self._lock:
            self._over = True
        self._outbox.drop(RingBrokenError(f"the link to {self._device} is closed"))

    def close(self) -> None:
        with self._lock:
            self._over = True
        self._outbox.finish(RingBrokenError(f"the link to {self._device} is closed"))
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(DRAIN_S)
            self.abandon()
            self._thread.join()

    def _carry(self, reception: Reception, visit: Visit) -> None:
        reason: EdgedError = RingBrokenError(f"{visit.sender} closed its link of the ring")
        try:
            for raw in self._outbox:
                visit.accept(raw)
        except FrameError as error:
            reason = error
            self._break(RingBrokenError(f"{self._device} refused a frame: {error.message}"))
        reception.leave(visit, reason)

    def _break(self, error: EdgedError) -> None:
        with self._lock:
            first, self._over = not self._over, True
        self._outbox.drop(error)
        if first:
            self._on_broken(error)
