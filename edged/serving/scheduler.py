"""Who computes next. Pure: takes what happened, says what to submit.

Rules: a ready decode step goes before any prompt chunk, the sequence served longest ago first; at most
`in_flight` micro-batches are on the ring; while an answer is being decoded, prompt chunks take at most
`prefill_beside_decode` of them, so a decode step waits for a bounded number of chunks; one place is kept
for prompts, so decoding never starves them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from edged.backend.window import KvOp
from edged.serving.sequence import Phase, Sequence, Step
from edged.serving.slots import SlotTable


@dataclass(frozen=True, slots=True)
class Limits:
    """How many micro-batches may be on the ring at once, in all and (beside a decode) of prompts."""

    in_flight: int
    prefill_beside_decode: int

    @classmethod
    def of_ring(cls, hops: int, spare: int) -> Limits:
        """`hops` keep every device busy; `spare` more wait, so that no device idles between two."""
        return cls(in_flight=hops + max(spare, 1), prefill_beside_decode=max(hops, 1))


@dataclass(frozen=True, slots=True)
class _Sent:
    step: Step
    prefill: bool


class Scheduler:
    """Places sequences in slots and picks micro-batches, for one ring with one context."""

    def __init__(
        self, *, n_slots: int, n_ubatch: int, limits: Limits, keeps_prefixes: bool, exact_replay: int
    ) -> None:
        self._n_ubatch = n_ubatch
        self._limits = limits
        self._exact_replay = exact_replay
        self._slots = SlotTable(n_slots, n_ubatch, keeps_prefixes)
        self._waiting: deque[Sequence] = deque()
        self._active: dict[int, Sequence] = {}
        self._on_ring: dict[int, _Sent] = {}
        self._ops: list[KvOp] = [KvOp("clear")]  # a window may hold what an earlier ring left in it
        self._served = count(1)

    @property
    def active(self) -> int:
        return len(self._active)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        return len(self._on_ring)

    @property
    def kept_tokens(self) -> int:
        return self._slots.kept_tokens

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def admit(self) -> Iterator[Sequence]:
        """Gives free slots to waiting sequences, in order of arrival; yields those placed now."""
        while self._waiting:
            sequence = self._waiting[0]
            grant = self._slots.take(sequence.id, sequence.tokens[: sequence.prompt_length])
            if grant is None:
                return
            self._waiting.popleft()
            sequence.place(grant.slot, grant.reused)
            self._ops.append(grant.op)
            self._active[sequence.id] = sequence
            yield sequence

    def next_step(self) -> Step | None:
        """The micro-batch to submit now; None where nothing is ready or the ring is full."""
        ready = [sequence for sequence in self._active.values() if sequence.ready]
        if not ready or len(self._on_ring) >= self._limits.in_flight:
            return None
        decode = [sequence for sequence in ready if sequence.phase is Phase.DECODE]
        prefill = [sequence for sequence in ready if sequence.phase is Phase.PREFILL]
        prefill_on_ring = sum(sent.prefill for sent in self._on_ring.values())
        last_place = len(self._on_ring) == self._limits.in_flight - 1
        if decode and not (prefill and last_place and prefill_on_ring == 0):
            chosen = decode
        elif prefill and prefill_on_ring < self._prefill_limit():
            chosen = prefill
        else:
            return None
        oldest = min(chosen, key=lambda sequence: sequence.served)
        return oldest.next_step(self._n_ubatch, self._exact_replay)

    def _prefill_limit(self) -> int:
        decoding = any(sequence.phase is Phase.DECODE for sequence in self._active.values())
        return self._limits.prefill_beside_decode if decoding else self._limits.in_flight

    def sent(self, batch_id: int, step: Step) -> tuple[KvOp, ...]:
        """`step` goes out as `batch_id`; gives the KV operations that go with it, before its tokens."""
        sequence = self._active[step.sequence]
        self._on_ring[batch_id] = _Sent(step, prefill=sequence.phase is Phase.PREFILL)
        sequence.sent = step.end
        sequence.served = next(self._served)
        ops = tuple(self._ops)
        self._ops.clear()
        return ops

    def refused(self, batch_id: int, ops: tuple[KvOp, ...]) -> None:
        """The ring did not take `batch_id`: its KV operations must go with the next micro-batch."""
        del self._on_ring[batch_id]
        self._ops[:0] = ops

    def arrived(self, batch_id: int) -> tuple[Step, Sequence] | None:
        """The result of `batch_id` is back; None if nobody waits for it any more."""
        sent = self._on_ring.pop(batch_id, None)
        if sent is None:
            return None
        sequence = self._active.get(sent.step.sequence)
        if sequence is None:
            return None
        sequence.confirmed = max(sequence.confirmed, sent.step.end)
        return sent.step, sequence

    def drop(self, sequence: Sequence, *, damaged: bool = False) -> None:
        """The sequence ends; its slot is free at once. `damaged`: nothing in the slot can be relied on."""
        if sequence.slot is None:
            self._waiting = deque(other for other in self._waiting if other is not sequence)
            return
        del self._active[sequence.id]
        kept = [] if damaged else sequence.reusable(self._n_ubatch)
        self._ops.append(self._slots.release(sequence.slot, kept))
        sequence.slot = None

    def displace_all(self) -> list[Sequence]:
        """The ring is gone: every sequence, in order of arrival, with nothing computed."""
        sequences = sorted([*self._active.values(), *self._waiting], key=lambda sequence: sequence.id)
        for sequence in sequences:
            sequence.displace()
        self._active.clear()
        self._waiting.clear()
        self._on_ring.clear()
        return sequences
