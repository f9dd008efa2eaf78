"""Who may send frames into this device, and where they go: the same for every transport."""

from __future__ import annotations

import threading
from collections.abc import Callable

from edged.errors import EdgedError, FrameError, RingBrokenError, RingError, UntrustedPeerError
from edged.ring.codec import decode
from edged.ring.transport import Endpoint


class Visit:
    """One predecessor's stream into one endpoint."""

    def __init__(self, endpoint: Endpoint, sender: str, stop: Callable[[], None]) -> None:
        self.endpoint = endpoint
        self.sender = sender
        self.stop = stop  # ends the stream; never blocks

    def accept(self, raw: bytes) -> None:
        """Decode a frame and hand it on. Raises FrameError where it is none, or not this sender's to send."""
        frame = decode(raw, self.endpoint.form)
        if frame.epoch == self.endpoint.epoch and not self.endpoint.expects(self.sender, frame.hop):
            raise FrameError(f"{self.sender} is not the predecessor of hop {frame.hop}")
        self.endpoint.receive(frame, self.sender)


class Reception:
    """The endpoints of a device by epoch, and the streams into them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._endpoints: dict[int, Endpoint] = {}
        self._visits: dict[int, dict[str, Visit]] = {}

    def attach(self, endpoint: Endpoint) -> None:
        with self._lock:
            if endpoint.epoch in self._endpoints:
                raise RingError(f"the ring of epoch {endpoint.epoch} is open here already")
            self._endpoints[endpoint.epoch] = endpoint
            self._visits[endpoint.epoch] = {}

    def detach(self, epoch: int) -> None:
        with self._lock:
            self._endpoints.pop(epoch, None)
            visits = list(self._visits.pop(epoch, {}).values())
        for visit in visits:
            visit.stop()

    def admit(self, sender: str, epoch: int, stop: Callable[[], None]) -> Visit:
        """Raises RingError where no such ring is open, UntrustedPeerError where `sender` does not precede."""
        with self._lock:
            endpoint = self._endpoints.get(epoch)
            if endpoint is None:
                raise RingBrokenError(f"no ring of epoch {epoch} is open here")
            if not endpoint.expects(sender):
                raise UntrustedPeerError(f"{sender} does not precede this device in epoch {epoch}'s ring")
            if sender in self._visits[epoch]:
                raise RingError(f"{sender} has a stream into the ring of epoch {epoch} already")
            visit = Visit(endpoint, sender, stop)
            self._visits[epoch][sender] = visit
            return visit

    def leave(self, visit: Visit, error: EdgedError) -> None:
        """The stream is over; its endpoint is told unless it has been detached itself."""
        with self._lock:
            visits = self._visits.get(visit.endpoint.epoch, {})
            known = visits.get(visit.sender) is visit
            if known:
                del visits[visit.sender]
        if known:
            visit.endpoint.lost(visit.sender, error)
