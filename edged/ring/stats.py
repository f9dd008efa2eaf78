"""Where a hop's time goes, counted by the stage that runs it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class HopStats:
    """Totals of one hop since its stage was opened. Times in seconds."""

    hop: int
    frames: int = 0
    tokens: int = 0
    failures: int = 0  # frames that failed here
    compute_s: float = 0.0  # inside the window: KV operations and layers
    queue_wait_s: float = 0.0  # from arrival on this device to the start of compute
    bytes_sent: int = 0  # to the successor, on the wire


@dataclass(frozen=True, slots=True)
class StageStats:
    hops: tuple[HopStats, ...]
    dropped: int  # frames of another epoch
