"""A device's place in one ring: its windows, the frames that wait for them, and the links onward.

One thread computes, since all windows of a device share its cores. Frames nearer the end of the ring go
first, and each hop stays first in, first out: every hop sees the same order of KV operations and tokens.
"""

from __future__ import annotations

import heapq
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from queue import Empty, SimpleQueue
from time import perf_counter

import numpy as np

from edged.backend.window import Batch, Hidden, KvOp, Logits, Tokens, Window
from edged.errors import EdgedError, FrameError, MisconductError, RingBrokenError, RingError, WindowError
from edged.planning.plan import Plan
from edged.ring.codec import FrameFormat, failed
from edged.ring.frame import Failure, Frame
from edged.ring.stats import HopStats, StageStats
from edged.ring.transport import Link, OnBroken, Transport

log = logging.getLogger(__name__)

OnLogits = Callable[[int, Logits | None, Failure | None], None]
"""Called on the compute thread with batch id and either logits or what failed."""

CANCEL_S = 0.05  # between two attempts to end the compute in progress

NO_LOGITS: Logits = np.empty((0, 0), np.float32)


def ring_depth(plan: Plan) -> int:
    """Frames in flight: two a hop keep every device busy while the next one travels, two more are entering.

    Every device holds its neighbours to it, so that no queue in the ring can fill: a full ring is a deadlock.
    """
    return 2 * len(plan.hops) + 2


@dataclass(order=True, slots=True)
class _Waiting:
    before_end: int  # hops left after this one
    number: int
    arrived: float = field(compare=False)
    frame: Frame = field(compare=False)
    tokens: Tokens | None = field(compare=False)  # at hop 0 only


class Stage:
    """Windows of one device at work in the ring of `plan`. An Endpoint for its transport.

    windows: by hop, all that the plan gives this device; they stay the caller's, to close after the stage.
    on_logits: where the plan's head is this device.
    on_broken: once, when a link broke; the stage has stopped by then and only needs close().
    on_failure: each time that a window of this device could not do its work; the ring goes on.

    Frames are let in from construction on, and computed from `connect` on.
    """

    def __init__(
        self,
        plan: Plan,
        device: str,
        windows: Mapping[int, Window],
        transport: Transport,
        on_broken: OnBroken,
        on_logits: OnLogits | None = None,
        on_failure: Callable[[str], None] = lambda _: None,
    ) -> None:
        if tuple(sorted(windows)) != plan.hops_of(device):
            raise RingError(f"windows for hops {sorted(windows)}, but the plan wants {plan.hops_of(device)}")
        widths = {window.width for window in windows.values()}
        if len(widths) != 1:
            raise RingError(f"windows of one model differ in width: {sorted(widths)}")
        self._plan = plan
        self._device = device
        self._windows = dict(windows)
        self._transport = transport
        self._on_broken = on_broken
        self._on_logits = on_logits
        self._on_failure = on_failure
        self._last_hop = len(plan.hops) - 1
        self._form = FrameFormat.of(plan, widths.pop())
        self._depth = ring_depth(plan)
        self._nothing: Hidden = np.empty((0, self._form.width), np.float32)
        self._predecessors = {
            hop: plan.hops[hop - 1].device
            for hop in windows
            if hop > 0 and plan.hops[hop - 1].device != device
        }
        self._links: dict[str, Link] = {}
        self._arrivals: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._heap: list[_Waiting] = []  # taken from the arrivals, for the compute thread to choose from
        self._numbers = count()
        self._stats = {hop: HopStats(hop) for hop in windows}
        self._dropped = 0
        self._lock = threading.Lock()
        self._stopped = False
        self._computing = False
        self._thread = threading.Thread(target=self._compute, name=f"ring-stage-{plan.epoch}-{device}")
        transport.attach(self)

    # ---- for whoever holds the stage

    @property
    def plan(self) -> Plan:
        return self._plan

    @property
    def epoch(self) -> int:
        return self._plan.epoch

    @property
    def form(self) -> FrameFormat:
        return self._form

    def connect(self) -> None:
        """Open the links to the successors and start to compute. Raises RingBrokenError. Idempotent."""
        if self._thread.ident is not None:
            return
        onward = (self._plan.hops[hop + 1].device for hop in self._windows if hop < self._last_hop)
        for device in dict.fromkeys(device for device in onward if device != self._device):
            link = self._transport.connect(device, self.epoch, self._form, self._depth, self._break)
            with self._lock:
                if not self._stopped:
                    self._links[device] = link
                    continue
            link.close()
        with self._lock:
            if not self._stopped:
                self._thread.start()
                return
        raise RingBrokenError(f"the ring of epoch {self.epoch} broke while it was being joined")

    def submit(self, batch_id: int, kv_ops: tuple[KvOp, ...], batch: Batch, tokens: Tokens) -> None:
        """Enter hop 0 of the ring. On the head only."""
        frame = Frame(self.epoch, 0, batch_id, kv_ops, batch, self._nothing)
        self._enqueue(frame, tokens)

    def stats(self) -> StageStats:
        hops = []
        for hop, stats in sorted(self._stats.items()):
            link = self._links.get(self._plan.hops[hop + 1].device) if hop < self._last_hop else None
            hops.append(replace(stats, bytes_sent=link.bytes_sent.get(hop + 1, 0) if link else 0))
        return StageStats(tuple(hops), self._dropped)

    @property
    def is_computing(self) -> bool:
        return self._computing

    def break_off(self, error: EdgedError) -> None:
        """Leave the ring because of `error`, which `on_broken` hears. Never blocks."""
        self._break(error)

    def abandon(self) -> None:
        """Leave the ring without waiting for anything, also where it is just being joined. Never blocks."""
        self._stop()

    def close(self) -> None:
        """Leave the ring: everything is dropped, also the compute in progress. Idempotent."""
        self._stop()
        for link in self._links.values():
            link.close()
        if self._thread.ident is None or self._thread is threading.current_thread():
            return
        while self._thread.is_alive():
            for window in self._windows.values():
                window.cancel()  # again and again: the run may not have begun yet
            self._thread.join(CANCEL_S)

    # ---- for the transport: what an Endpoint is

    def expects(self, sender: str, hop: int | None = None) -> bool:
        if hop is None:
            return sender in self._predecessors.values()
        return self._predecessors.get(hop) == sender

    def receive(self, frame: Frame, sender: str) -> None:
        if frame.epoch > self.epoch:
            raise FrameError(f"{sender} sends frames of an epoch to come")
        if frame.epoch != self.epoch:
            with self._lock:
                self._dropped += 1
            return
        if self._arrivals.qsize() + len(self._heap) > self._depth:
            raise FrameError(f"{sender} sends more frames than the ring's {self._depth}")
        self._enqueue(frame, None)

    def lost(self, sender: str, error: EdgedError) -> None:
        if isinstance(error, FrameError):
            error = MisconductError(f"{sender} broke the rules of the ring: {error.message}", sender)
        self._break(error)

    def reject(self, error: FrameError) -> None:
        """What came to the last hop belongs to no batch that was submitted."""
        self.lost(self._predecessors.get(self._last_hop, self._device), error)

    # ---- within

    def _enqueue(self, frame: Frame, tokens: Tokens | None) -> None:
        left = self._last_hop - frame.hop
        self._arrivals.put(_Waiting(left, next(self._numbers), perf_counter(), frame, tokens))

    def _stop(self) -> bool:
        """Let nothing in or out any more; True the first time. Never blocks."""
        with self._lock:
            if self._stopped:
                return False
            self._stopped = True
        self._arrivals.put(None)
        self._transport.detach(self.epoch)
        for link in self._links.values():
            link.abandon()
        return True

    def _break(self, error: EdgedError) -> None:
        """A neighbour is gone. Leaving in turn tells the other neighbours, and so the head."""
        if self._stop():
            self._on_broken(error)

    def _compute(self) -> None:
        heap = self._heap
        while True:
            arrival = self._next_arrival(block=not heap)
            while arrival is not None:
                heapq.heappush(heap, arrival)
                arrival = self._next_arrival(block=False)
            if self._stopped:
                return
            waiting = heapq.heappop(heap)
            try:
                self._visit(waiting)
            except EdgedError as error:  # the link onward is gone
                self._break(error)

    def _next_arrival(self, *, block: bool) -> _Waiting | None:
        try:
            return self._arrivals.get(block)
        except Empty:
            return None

    def _visit(self, waiting: _Waiting) -> None:
        frame, hop = waiting.frame, waiting.frame.hop
        started = perf_counter()
        self._computing = True
        output, failure = self._run(frame, waiting.tokens)
        self._computing = False
        stats = self._stats[hop]
        stats.compute_s += perf_counter() - started
        stats.queue_wait_s += started - waiting.arrived
        stats.frames += 1
        stats.tokens += frame.batch.n_tokens
        stats.failures += failure is not None and frame.failure is None
        if hop < self._last_hop:
            onward = Frame(frame.epoch, hop + 1, frame.batch_id, frame.kv_ops, frame.batch, output, failure)
            self._forward(onward if failure is None else failed(onward, failure))
        elif self._on_logits is not None:
            self._on_logits(frame.batch_id, output if failure is None else None, failure)

    def _run(self, frame: Frame, tokens: Tokens | None) -> tuple[Hidden | Logits, Failure | None]:
        """Apply the KV operations, then run the tokens unless something failed, here or before.

        A frame that failed still changes KV state: its operations may concern other sequences, and every
        hop must hold the same.
        """
        window, batch = self._windows[frame.hop], frame.batch
        failure = frame.failure
        last = frame.hop == self._last_hop
        for op in frame.kv_ops:
            failure = self._apply(window, op) or failure
        if failure is not None or not batch.n_tokens:
            return NO_LOGITS if last else self._nothing, failure
        inputs = frame.hidden if tokens is None else tokens
        try:
            return window.run_last(batch, inputs) if last else window.run(batch, inputs), None
        except Exception as error:  # noqa: BLE001  whatever a window raises must not end the ring
            return self._nothing, self._failure(error)

    def _apply(self, window: Window, op: KvOp) -> Failure | None:
        try:
            if window.apply(op):
                return None
        except Exception as error:  # noqa: BLE001  as above
            return self._failure(error)
        message = f"this model cannot {op.kind} cached tokens of sequence {op.seq}"
        return Failure(WindowError.code, message, self._device)

    def _failure(self, error: Exception) -> Failure:
        if isinstance(error, EdgedError):
            self._on_failure(error.message)
            return Failure(error.code, error.message, self._device)
        log.error("a window raised what it should not", exc_info=error)
        return Failure(WindowError.code, f"the window failed: {error!r}", self._device)

    def _forward(self, frame: Frame) -> None:
        device = self._plan.hops[frame.hop].device
        if device == self._device:
            self._enqueue(frame, None)
            return
        try:
            self._links[device].send(frame)
        except FrameError as error:  # the window's result has not the shape it should
            self._links[device].send(failed(replace(frame, hidden=self._nothing), self._failure(error)))
