"""A model whose next token is a function of everything its sequence has in the cache, and a ring of it.

Any token at a wrong position, of another sequence, twice or left out changes every later logit.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from edged.backend.window import Batch, KvOp, Logits, Tokens
from edged.errors import RingBrokenError
from edged.ring.frame import Failure

OnResult = Callable[[int, Logits | None, Failure | None], None]


class HistoryModel:
    """Sequences of (position, token, chunk); complains about holes. Not thread safe."""

    def __init__(self, n_vocab: int, n_slots: int, n_ctx: int) -> None:
        self._n_vocab = n_vocab
        self._n_slots = n_slots
        self._n_ctx = n_ctx
        self.cache: dict[int, list[tuple[int, int]]] = {}  # slot -> (token, tokens in its micro-batch)
        self.applied: list[KvOp] = []

    def apply(self, op: KvOp) -> None:
        self.applied.append(op)
        if op.kind == "clear":
            self.cache.clear()
        elif op.kind == "remove":
            assert op.p1 == -1 and 0 <= op.seq < self._n_slots
            del self.cache.setdefault(op.seq, [])[op.p0 :]
        else:
            raise AssertionError(f"the engine never sends {op}")

    def run(self, batch: Batch, tokens: Tokens) -> Logits:
        (slot,) = set(batch.seq_ids.tolist())
        history = self.cache.setdefault(slot, [])
        assert batch.positions.tolist() == list(range(len(history), len(history) + len(tokens))), "a hole"
        assert len(history) + len(tokens) <= self._n_ctx and 0 <= slot < self._n_slots
        rows = []
        for token, wanted in zip(tokens.tolist(), batch.outputs.tolist(), strict=True):
            history.append((token, len(tokens)))
            if wanted:
                rows.append(self.logits(history))
        return np.array(rows, np.float32).reshape(-1, self._n_vocab)

    def logits(self, history: list[tuple[int, int]]) -> np.ndarray:
        digest = hashlib.blake2b(repr(history).encode(), digest_size=8).digest()
        generator = np.random.default_rng(int.from_bytes(digest, "big"))
        return generator.normal(0, 2, self._n_vocab).astype(np.float32)


@dataclass
class Submitted:
    batch_id: int
    kv_ops: tuple[KvOp, ...]
    batch: Batch
    tokens: Tokens

    @property
    def slot(self) -> int:
        return int(self.batch.seq_ids[0])

    @property
    def span(self) -> tuple[int, int]:
        return int(self.batch.positions[0]), int(self.batch.positions[-1]) + 1


@dataclass
class FakeRing:
    """Computes on a thread of its own, in order; `gate` holds results back where a test wants to look."""

    model: HistoryModel
    on_result: OnResult
    fail: Callable[[Submitted], Failure | None] = lambda submitted: None
    submitted: list[Submitted] = field(default_factory=list)
    most_in_flight: int = 0

    def __post_init__(self) -> None:
        self._queue: deque[Submitted] = deque()
        self._changed = threading.Condition()
        self._open = True
        self._allowed: int | None = None  # results still to be given; None: any number
        self.broken = False
        self._thread = threading.Thread(target=self._run, name="fake-ring")
        self._thread.start()

    def submit(self, batch_id: int, kv_ops: tuple[KvOp, ...], batch: Batch, tokens: Tokens) -> None:
        if self.broken:
            raise RingBrokenError("the ring is broken")
        assert tokens.dtype == np.int32 and batch.n_tokens == len(tokens) > 0
        with self._changed:
            frame = Submitted(batch_id, kv_ops, batch, tokens)
            self.submitted.append(frame)
            self._queue.append(frame)
            self.most_in_flight = max(self.most_in_flight, len(self._queue))
            self._changed.notify_all()

    def allow(self, results: int | None) -> None:
        """Give that many results and then hold; None lets all through."""
        with self._changed:
            self._allowed = results
            self._changed.notify_all()

    def wait_held(self, frames: int = 1) -> None:
        """Until so many frames are held back."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._allowed == 0 and len(self._queue) >= frames, 30)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._open or (self._queue and self._allowed != 0))
                if not self._open:
                    return
                frame = self._queue[0]
            failure = self.fail(frame)
            for op in frame.kv_ops:
                self.model.apply(op)
            logits = None if failure else self.model.run(frame.batch, frame.tokens)
            with self._changed:
                self._queue.popleft()
                if self._allowed is not None:
                    self._allowed -= 1
                self._changed.notify_all()
            self.on_result(frame.batch_id, logits, failure)

    def close(self) -> None:
        with self._changed:
            self._open = False
            self._changed.notify_all()
        self._thread.join()
