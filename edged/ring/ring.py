"""The ring as its head sees it: batches go in, logits come out, and none is ever forgotten."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from edged.backend.window import Batch, KvOp, Logits, Tokens, Window
from edged.errors import (
    BY_CODE,
    EdgedError,
    FrameError,
    PeerLostError,
    RingBrokenError,
    RingError,
    StalledError,
)
from edged.planning.plan import Plan
from edged.ring.frame import Failure
from edged.ring.stage import Stage, ring_depth
from edged.ring.stats import StageStats
from edged.ring.transport import OnBroken, Transport
from edged.watchdog import Watchdog

STALL_S = 60.0  # without any result; no device that a plan would use needs so long for a chunk
STALL_FACTOR = 10.0  # or so many times what the plan expects, if that is more


def stall_limit(plan: Plan) -> float:
    """Seconds after which a ring with batches in flight and no result stands still."""
    if plan.expected is None:
        return STALL_S
    chunk_ms = plan.expected.ttft_ms_per_token * plan.context.n_ubatch + plan.expected.tpot_ms
    return max(STALL_S, STALL_FACTOR * chunk_ms / 1000)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a batch: logits (n_outputs, n_vocab), or a failure."""

    batch_id: int
    logits: Logits | None
    failure: Failure | None = None

    @property
    def error(self) -> EdgedError | None:
        """The failure as the exception it was."""
        if self.failure is None:
            return None
        return BY_CODE.get(self.failure.code, RingError)(self.failure.message)


@dataclass(frozen=True, slots=True)
class _Entry:
    batch_id: int
    kv_ops: tuple[KvOp, ...]
    batch: Batch
    tokens: Tokens


class Ring:
    """The head's stage, and the account of what is in flight.

    on_result: called once per submitted batch, in order of submission unless the ring breaks; mostly on the
               compute thread, and on any thread when the ring breaks. It must be quick (put it in a queue).
    on_broken: after every batch has been failed with RingBrokenError's code; with a StalledError where no
               link broke and results stay away all the same.
    on_failure: as a stage has it.

    After a failure other than a broken ring the batch's tokens are in the KV cache of the hops before the
    failing one, and not of those after: remove the sequences' positions from the batch's first on. Such an
    operation is in order behind whatever else of the sequence is in flight.
    """

    def __init__(
        self,
        plan: Plan,
        windows: Mapping[int, Window],
        transport: Transport,
        on_result: Callable[[Result], None],
        on_broken: OnBroken,
        on_failure: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._plan = plan
        self._depth = ring_depth(plan)
        self._on_result = on_result
        self._on_broken = on_broken
        self._lock = threading.Lock()
        self._in_flight: set[int] = set()
        self._waiting: deque[_Entry] = deque()
        self._order: dict[int, None] = {}  # every batch not yet answered, as submitted
        self._broken: EdgedError | None = None
        self._stage = Stage(plan, plan.head, windows, transport, self._broke, self._arrived, on_failure)
        self._watchdog: Watchdog | None = None

    @property
    def plan(self) -> Plan:
        return self._plan

    @property
    def in_flight(self) -> int:
        """Batches submitted and not yet answered."""
        return len(self._order)

    def connect(self) -> None:
        """Open the links; every other device must have its stage by now. Raises RingBrokenError."""
        self._stage.connect()
        if self._watchdog is None and len(set(self._plan.devices)) > 1:
            name = f"ring-watch-{self._plan.epoch}"
            self._watchdog = Watchdog(name, stall_limit(self._plan), self._stalled, lambda: not self._order)

    def submit(self, batch_id: int, kv_ops: tuple[KvOp, ...], batch: Batch, tokens: Tokens) -> None:
        """Send a batch round the ring; never blocks. A batch of no tokens only changes KV state.

        Raises RingBrokenError, FrameError where the batch does not fit this ring, RingError where the
        batch id is in use.
        """
        self._stage.form.check(kv_ops, batch)
        with self._lock:
            if self._broken is not None:
                raise RingBrokenError(self._broken.message)
            if batch_id in self._order:
                raise RingError(f"batch {batch_id} is in the ring already")
            self._order[batch_id] = None
            self._waiting.append(_Entry(batch_id, kv_ops, batch, tokens))
            self._enter()

    def stats(self) -> StageStats:
        return self._stage.stats()

    def abandon(self) -> None:
        """Fail what is in flight and leave the ring; `close` does the rest. Never blocks."""
        self._fail_all(RingBrokenError(f"the ring of epoch {self.plan.epoch} was closed"))
        self._stage.abandon()

    def close(self) -> None:
        """Fail what is in flight, leave the ring, join its threads. Idempotent."""
        self._fail_all(RingBrokenError(f"the ring of epoch {self.plan.epoch} was closed"))
        if self._watchdog is not None:
            self._watchdog.close()
        self._stage.close()

    def _enter(self) -> None:
        while self._waiting and len(self._in_flight) < self._depth:
            entry = self._waiting.popleft()
            self._in_flight.add(entry.batch_id)
            self._stage.submit(entry.batch_id, entry.kv_ops, entry.batch, entry.tokens)

    def _arrived(self, batch_id: int, logits: Logits | None, failure: Failure | None) -> None:
        with self._lock:
            known = batch_id in self._in_flight
            if known:
                self._in_flight.remove(batch_id)
                del self._order[batch_id]
                if self._watchdog is not None:
                    self._watchdog.feed()
                self._enter()
            elif self._broken is not None:
                return  # failed already, when the ring broke
        if not known:
            self._stage.reject(FrameError(f"batch {batch_id} was never submitted"))
            return
        if failure is not None and failure.code in (RingBrokenError.code, PeerLostError.code):
            failure = replace(
                failure, code=RingError.code
            )  # no frame can say so: the ring is what brought it
        self._on_result(Result(batch_id, logits, failure))

    def _stalled(self) -> None:
        self._stage.break_off(StalledError(f"no result came for {stall_limit(self._plan):.0f} s"))

    def _broke(self, error: EdgedError) -> None:
        self._fail_all(error)
        self._on_broken(error)

    def _fail_all(self, error: EdgedError) -> None:
        with self._lock:
            if self._broken is not None:
                return
            self._broken = error
            lost = tuple(self._order)
            self._order.clear()
            self._in_flight.clear()
            self._waiting.clear()
        failure = Failure(RingBrokenError.code, error.message, self.plan.head)
        for batch_id in lost:
            self._on_result(Result(batch_id, None, failure))
