"""What HTTP asks of the daemon besides answers: its models, its state, its counters."""

from __future__ import annotations

from typing import Protocol

from pydantic import Field

from edged.documents import Document
from edged.rpc.messages import ModelsAnswer, StatusAnswer


class HopStatistics(Document):
    """Totals of one window of the ring, as far as this daemon knows them."""

    hop: int = Field(ge=0)
    device: str
    frames: int = Field(ge=0)
    compute_s: float = Field(ge=0)  # inside the window
    bytes_sent: int = Field(ge=0)  # of frames, to the successor


class ResidencyStatistics(Document):
    """Where this device's layers are, and what it has read for those on disk. Bytes, seconds."""

    resident: int = Field(default=0, ge=0)
    locked: int = Field(default=0, ge=0)
    streamed: int = Field(default=0, ge=0)  # for every token
    read_ahead: int = Field(default=0, ge=0)
    read: int = Field(default=0, ge=0)
    wasted: int = Field(default=0, ge=0)
    waits: int = Field(default=0, ge=0)
    waited: float = Field(default=0.0, ge=0)
    given_up: int = Field(default=0, ge=0)  # layers


class Statistics(Document):
    """Counters since the daemon started; they only grow while an epoch lasts."""

    hops: tuple[HopStatistics, ...] = ()
    frames_dropped: int = Field(default=0, ge=0)  # of an old epoch, or unreadable
    residency: ResidencyStatistics = ResidencyStatistics()


class DaemonView(Protocol):
    """From any thread. Quick: `status` is asked before every request."""

    def models(self) -> ModelsAnswer: ...
    def status(self) -> StatusAnswer: ...
    def statistics(self) -> Statistics: ...
