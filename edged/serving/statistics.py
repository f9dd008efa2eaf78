"""What the engine has done, for /metrics and status pages."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median

_RECENT = 512  # values that a median is taken of


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot. Counters run from the engine's start; medians are of recent values, or None."""

    attached: bool  # a ring is there
    active: int  # sequences with a slot
    waiting: int
    in_flight: int  # micro-batches on the ring
    reusable_tokens: int  # prompt prefixes held in free slots
    requests: int
    finished: int
    failed: int
    cancelled: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    switches: int  # rings attached
    ttft_ms: float | None  # request accepted to first token
    tpot_ms: float | None  # one token to the next of the same answer


class Recorder:
    """Counts on the engine's thread; reading single values from others is safe."""

    def __init__(self) -> None:
        self.requests = 0
        self.finished = 0
        self.failed = 0
        self.cancelled = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.switches = 0
        self._ttft: deque[float] = deque(maxlen=_RECENT)
        self._tpot: deque[float] = deque(maxlen=_RECENT)

    def new_ring(self) -> None:
        """Times of the ring before say nothing of this one."""
        self.switches += 1
        self._ttft.clear()
        self._tpot.clear()

    def first_token(self, seconds: float) -> None:
        self.completion_tokens += 1
        self._ttft.append(seconds * 1e3)

    def next_token(self, seconds: float) -> None:
        self.completion_tokens += 1
        self._tpot.append(seconds * 1e3)

    def snapshot(
        self, *, attached: bool, active: int, waiting: int, in_flight: int, reusable_tokens: int
    ) -> EngineStats:
        return EngineStats(
            attached=attached,
            active=active,
            waiting=waiting,
            in_flight=in_flight,
            reusable_tokens=reusable_tokens,
            requests=self.requests,
            finished=self.finished,
            failed=self.failed,
            cancelled=self.cancelled,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cached_tokens=self.cached_tokens,
            switches=self.switches,
            ttft_ms=median(ttft) if (ttft := self._ttft.copy()) else None,
            tpot_ms=median(tpot) if (tpot := self._tpot.copy()) else None,
        )
