"""The engine on the head: requests in, micro-batches to the ring, logits back, text out.

Everything but `generate` happens in turns of three lines: take what has arrived (requests, results, a new
ring), end what has waited too long, submit what is ready. One turn at a time: most on the thread that brings
a result, so that the next token is on its way without a change of threads, the others on the engine's own.
Nothing in a turn waits for a client or for the ring.

A ring may go and another come at any time. Between the two, answers wait; then all their tokens so far are
computed on the new ring and they go on. The client sees a pause, no error, and no token twice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import numpy as np

from edged.backend.window import Batch, Logits
from edged.errors import (
    BY_CODE,
    EdgedError,
    ModelError,
    OverloadedError,
    PeerLostError,
    RingBrokenError,
    RingError,
    UnknownModelError,
)
from edged.planning.plan import ContextOptions
from edged.ring.frame import Failure
from edged.serving.answer import Answer
from edged.serving.generation import FinishReason, GenerateRequest, Generation
from edged.serving.prompt import PromptBuilder, check_fits
from edged.serving.ring_port import RingPort
from edged.serving.sampler import Candidates
from edged.serving.scheduler import Limits, Scheduler
from edged.serving.sequence import Sequence, Step
from edged.serving.statistics import EngineStats, Recorder
from edged.serving.stream import EventStream
from edged.serving.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

_RING_GONE = (RingBrokenError.code, PeerLostError.code)  # failures after which another ring is expected


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """exact_replay: after a switch of rings, up to this many generated tokens are computed one by one as they
    were, so that the answer stays the same bit for bit; longer answers in chunks, which is quicker."""

    max_waiting: int = 64  # requests without a slot; more are refused
    spare_frames: int = 2  # micro-batches in flight beyond one per hop
    ring_wait_s: float = 120.0  # how long a request waits for a ring before it fails
    exact_replay: int = 128  # tokens


@dataclass(frozen=True, slots=True)
class _Result:
    batch_id: int
    logits: Logits | None
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class _Attached:
    """A ring in use."""

    ring: RingPort
    context: ContextOptions
    scheduler: Scheduler


class Engine:
    """Serves one model: a `Generator` for the front doors; `attach`, `detach`, `deliver` for the ring's side.

    Every method may be called from any thread and returns at once, but `generate` tokenizes in the caller's
    thread (milliseconds; a second for a megabyte) and `close` joins the engine's.
    """

    def __init__(
        self,
        *,
        model: str,
        tokenizer: Tokenizer,
        recurrent: bool = False,
        settings: EngineSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """recurrent: the model's state cannot be rolled back (`Manifest.recurrent`). The tokenizer stays
        the caller's, to close after the engine."""
        self._model = model
        self._tokenizer = tokenizer
        self._prompts = PromptBuilder(tokenizer)
        self._keeps_prefixes = not recurrent
        self._settings = settings or EngineSettings()
        self._clock = clock
        self._candidates = Candidates(tokenizer.n_vocab)
        self._recorder = Recorder()
        self._ids = count(1)
        self._batch_ids = count(1)  # never used twice, so results of an earlier ring are known by theirs

        self._inbox: deque[Callable[[], None]] = deque()
        self._arrived = threading.Condition()
        self._turn = threading.Lock()  # whoever holds it is the engine
        self._closing = False
        self._n_ctx: int | None = None  # of the attached ring, for checks in `generate`
        self._unplaced: dict[int, Answer] = {}  # without a slot; guarded by `_arrived`, as is the inbox

        self._answers: dict[int, Answer] = {}
        self._held: list[Sequence] = []  # while no ring is attached
        self._attached: _Attached | None = None
        self._thread = threading.Thread(target=self._run, name="edged-engine", daemon=False)
        self._thread.start()

    # For the front doors

    def generate(self, request: GenerateRequest) -> Generation:
        """Raises UnknownModelError, InvalidRequestError, ContextOverflowError, OverloadedError; ModelError
        once the engine is closed."""
        if request.model is not None and request.model != self._model:
            raise UnknownModelError(f"the model {request.model!r} is not loaded; {self._model!r} is")
        prompt = self._prompts.build(request)
        if self._n_ctx is not None:
            check_fits(len(prompt.tokens), self._n_ctx)
        sequence = Sequence(next(self._ids), list(prompt.tokens), len(prompt.tokens))
        stream = EventStream(on_cancel=lambda: self._post(lambda: self._cancel(sequence.id)))
        answer = Answer(sequence, request, prompt, stream, self._clock())
        with self._arrived:
            if self._closing:
                raise _unloaded()
            if len(self._unplaced) >= self._settings.max_waiting:
                raise OverloadedError(f"{len(self._unplaced)} requests wait already: try again in a while")
            self._unplaced[sequence.id] = answer
            self._inbox.append(lambda: self._add(answer))
            self._arrived.notify()
        return stream

    def stats(self) -> EngineStats:
        attached = self._attached
        with self._arrived:
            waiting = len(self._unplaced)
        return self._recorder.snapshot(
            attached=attached is not None,
            active=attached.scheduler.active if attached else 0,
            waiting=waiting,
            in_flight=attached.scheduler.in_flight if attached else 0,
            reusable_tokens=attached.scheduler.kept_tokens if attached else 0,
        )

    # For the side of the ring

    def attach(self, ring: RingPort, context: ContextOptions, hops: int = 1) -> None:
        """Use `ring` of `hops` windows from now on; an earlier one is left, and its results are ignored."""
        self._post(lambda: self._attach(ring, context, hops))

    def detach(self) -> None:
        """The ring goes away; answers wait for the next. Idempotent."""
        self._post(self._detach)

    def deliver(self, batch_id: int, logits: Logits | None, failure: Failure | None = None) -> None:
        """The result of a submitted micro-batch: the ring's `OnResult`."""
        with self._arrived:
            if self._closing:
                return
            self._inbox.append(lambda: self._take_result(_Result(batch_id, logits, failure)))
        self._turn_here()

    def close(self) -> None:
        """Ends every answer with an error and joins the thread; idempotent."""
        with self._arrived:
            self._closing = True
            self._arrived.notify()
        self._prompts.close()
        self._thread.join()

    def _post(self, what: Callable[[], None]) -> None:
        with self._arrived:
            if not self._closing:
                self._inbox.append(what)
                self._arrived.notify()

    # The loop: one turn after the other, whoever takes them

    def _run(self) -> None:
        try:
            timeout = None
            while self._wait(timeout):
                with self._turn:
                    self._take_turn()
                    timeout = self._seconds_to_deadline()
        finally:
            with self._turn:
                for answer in (self._answers | self._unplaced).values():
                    answer.fail(_unloaded())

    def _turn_here(self) -> None:
        """On the thread that brought a result: the next token is on its way without waking another thread."""
        while self._inbox and self._turn.acquire(blocking=False):
            try:
                self._take_turn()
                waits = bool(self._held)
            finally:
                self._turn.release()
            if waits:
                self._post(lambda: None)  # the engine's own thread has deadlines to look at now
                return

    def _take_turn(self) -> None:
        with self._arrived:
            arrived, self._inbox = self._inbox, deque()
        try:
            for handle in arrived:
                handle()
            self._end_overdue()
            self._submit_ready()
        except Exception:  # noqa: BLE001 (a fault of ours: the engine's own thread ends every answer with an error)
            _log.exception("the engine stopped")
            with self._arrived:
                self._closing = True
                self._arrived.notify()

    def _wait(self, timeout: float | None) -> bool:
        """Until something has arrived or `timeout` seconds have passed; False at the end."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._inbox or self._closing, timeout)
            return not self._closing

    def _seconds_to_deadline(self) -> float | None:
        if self._attached is not None or not self._held:
            return None
        first = min(self._answers[sequence.id].waiting_since for sequence in self._held)
        return max(0.0, first + self._settings.ring_wait_s - self._clock())

    def _end_overdue(self) -> None:
        if self._attached is not None:
            return
        patience = self._settings.ring_wait_s
        for sequence in list(self._held):
            answer = self._answers[sequence.id]
            if answer.waiting_since + patience <= self._clock():
                what = f"no ring of devices became ready within {patience:g} s"
                self._fail(answer, RingBrokenError(f"{what}: `edged status` says what is missing"))

    def _submit_ready(self) -> None:
        while (attached := self._attached) is not None:
            for sequence in attached.scheduler.admit():
                self._begin(sequence, attached.context)
            step = attached.scheduler.next_step()
            if step is None:
                return
            self._submit(attached, step)

    # What can arrive

    def _add(self, answer: Answer) -> None:
        self._recorder.requests += 1
        self._answers[answer.sequence.id] = answer
        if self._attached is None:
            self._held.append(answer.sequence)
        else:
            self._enqueue(self._attached, answer)

    def _cancel(self, sequence_id: int) -> None:
        answer = self._answers.get(sequence_id)
        if answer is not None:
            self._recorder.cancelled += 1
            self._end(answer, "cancelled")

    def _attach(self, ring: RingPort, context: ContextOptions, hops: int) -> None:
        self._detach()
        scheduler = Scheduler(
            n_slots=context.n_seq_max,
            n_ubatch=context.n_ubatch,
            limits=Limits.of_ring(hops, self._settings.spare_frames),
            keeps_prefixes=self._keeps_prefixes,
            exact_replay=self._settings.exact_replay,
        )
        self._attached = attached = _Attached(ring, context, scheduler)
        self._n_ctx = context.n_ctx
        self._recorder.new_ring()
        held, self._held = self._held, []
        for sequence in held:
            self._enqueue(attached, self._answers[sequence.id])

    def _detach(self) -> None:
        if self._attached is None:
            return
        self._held = self._attached.scheduler.displace_all()
        self._attached = None
        self._n_ctx = None
        now = self._clock()
        for sequence in self._held:
            self._answers[sequence.id].waiting_since = now
        with self._arrived:
            self._unplaced |= {sequence.id: self._answers[sequence.id] for sequence in self._held}

    def _take_result(self, result: _Result) -> None:
        if self._attached is None:
            return
        arrival = self._attached.scheduler.arrived(result.batch_id)
        if arrival is None:
            return
        step, sequence = arrival
        answer = self._answers[sequence.id]
        if result.failure is not None:
            self._take_failure(answer, result.failure)
        elif step.wants_logits:
            self._advance(answer, result.logits)

    # What follows from it

    def _enqueue(self, attached: _Attached, answer: Answer) -> None:
        """Queue for a slot, unless this ring's context is too short for it."""
        n_tokens, n_ctx = len(answer.sequence.tokens), attached.context.n_ctx
        if answer.generated and n_tokens >= n_ctx:
            self._end(answer, "length")
            return
        try:
            check_fits(n_tokens, n_ctx)
        except EdgedError as error:
            self._fail(answer, error)
            return
        attached.scheduler.add(answer.sequence)

    def _begin(self, sequence: Sequence, context: ContextOptions) -> None:
        answer = self._answers[sequence.id]
        if answer.generated == 0:
            self._recorder.prompt_tokens += sequence.prompt_length
            self._recorder.cached_tokens += sequence.sent
        answer.begin(context.n_ctx, self._tokenizer, self._candidates, self._clock())
        with self._arrived:
            self._unplaced.pop(sequence.id, None)

    def _submit(self, attached: _Attached, step: Step) -> None:
        answer = self._answers[step.sequence]
        n = step.end - step.start
        outputs = np.zeros(n, np.bool_)
        outputs[-1] = step.wants_logits
        batch = Batch(
            seq_ids=np.full(n, step.slot, np.int32),
            positions=np.arange(step.start, step.end, dtype=np.int32),
            outputs=outputs,
        )
        tokens = np.asarray(answer.sequence.tokens[step.start : step.end], np.int32)
        batch_id = next(self._batch_ids)
        kv_ops = attached.scheduler.sent(batch_id, step)
        try:
            attached.ring.submit(batch_id, kv_ops, batch, tokens)
        except EdgedError as error:
            attached.scheduler.refused(batch_id, kv_ops)
            self._take_failure(answer, Failure(error.code, error.message, device=""))

    def _advance(self, answer: Answer, logits: Logits | None) -> None:
        try:
            reason = answer.advance(logits, self._tokenizer, self._recorder, self._clock())
        except EdgedError as error:
            self._fail(answer, error)
            return
        except Exception as error:  # noqa: BLE001 (a fault of ours must not end the other answers)
            _log.exception("sampling failed")
            self._fail(answer, EdgedError(f"the head failed while choosing a token: {error}"))
            return
        if reason is not None:
            self._recorder.finished += 1
            self._end(answer, reason)

    def _take_failure(self, answer: Answer, failure: Failure) -> None:
        if failure.code in _RING_GONE:
            _log.info(
                "the ring broke (%s): %d answers wait for the next", failure.message, len(self._answers)
            )
            self._detach()
            return
        error = BY_CODE.get(failure.code, RingError)(failure.message)
        self._fail(answer, error)

    def _end(self, answer: Answer, reason: FinishReason) -> None:
        self._forget(answer, damaged=False)
        answer.end(reason, self._clock())

    def _fail(self, answer: Answer, error: EdgedError) -> None:
        self._recorder.failed += 1
        self._forget(answer, damaged=True)
        answer.fail(error)

    def _forget(self, answer: Answer, damaged: bool) -> None:
        sequence = answer.sequence
        del self._answers[sequence.id]
        with self._arrived:
            self._unplaced.pop(sequence.id, None)
        if self._attached is not None:
            self._attached.scheduler.drop(sequence, damaged=damaged)
        elif sequence in self._held:
            self._held.remove(sequence)


def _unloaded() -> ModelError:
    return ModelError("the model is being unloaded: try again when a model is loaded")
