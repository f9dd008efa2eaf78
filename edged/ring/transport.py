"""What a stage asks of whatever carries its frames: links out, and an endpoint for frames coming in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from edged.errors import EdgedError
from edged.ring.codec import FrameFormat
from edged.ring.frame import Frame

OnBroken = Callable[[EdgedError], None]
"""Called once, at once, on whichever thread noticed; it must not block."""


class Link(Protocol):
    """The way to one successor in one epoch. First in, first out."""

    @property
    def device(self) -> str: ...

    @property
    def bytes_sent(self) -> Mapping[int, int]:
        """Bytes of the frames sent so far, by the hop they were for."""
        ...

    def send(self, frame: Frame) -> None:
        """Hand `frame` to the sender and return; blocks only while the link's queue is full.

        Raises RingBrokenError where the link is broken or closed, FrameError where the frame does not fit.
        """
        ...

    def abandon(self) -> None:
        """Stop at once, drop what waits, tell the other end. Never blocks; any thread."""
        ...

    def close(self) -> None:
        """Send what waits (for a second at most), end the stream, free everything. Idempotent."""
        ...


class Endpoint(Protocol):
    """Where frames of one epoch arrive on a device: its stage."""

    @property
    def epoch(self) -> int: ...

    @property
    def form(self) -> FrameFormat: ...

    def expects(self, sender: str, hop: int | None = None) -> bool:
        """Is `sender` the predecessor of this hop here (or of any hop here)?"""
        ...

    def receive(self, frame: Frame, sender: str) -> None:
        """Take a frame. Raises FrameError where the sender breaks the rules of the ring."""
        ...

    def lost(self, sender: str, error: EdgedError) -> None:
        """No more frames come from `sender`. Called once per stream; must not block."""
        ...


class Transport(Protocol):
    """One device's access to the ring's links."""

    def attach(self, endpoint: Endpoint) -> None:
        """Let frames of the endpoint's epoch in. Raises RingError where that epoch is attached already."""
        ...

    def detach(self, epoch: int) -> None:
        """End every stream into that epoch and let none in any more; give up links of it that are being
        opened. Epochs only grow: earlier ones are left with it. Never blocks; idempotent."""
        ...

    def connect(self, device: str, epoch: int, form: FrameFormat, capacity: int, on_broken: OnBroken) -> Link:
        """A link to `device`, accepted by its endpoint of `epoch`, with a queue of `capacity` frames.

        Raises RingBrokenError where the device cannot be reached or refuses, RingError where frames of
        this form are too large for the transport.
        `on_broken` is called when the link breaks, but not after `abandon` or `close`.
        """
        ...
