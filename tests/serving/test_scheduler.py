"""Properties of the pure part: what is computed, where, in which shape, and whose turn it is."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from itertools import count, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from edged.backend.window import KvOp
from edged.serving.scheduler import Limits, Scheduler
from edged.serving.sequence import Phase, Sequence, Step
from edged.serving.slots import SlotTable

N_UBATCH = 4
DEFAULT_LIMITS = Limits(in_flight=3, prefill_beside_decode=2)


@dataclass
class Bench:
    """Plays engine and ring: keeps what each slot would hold, and checks every step against it."""

    n_slots: int = 2
    limits: Limits = DEFAULT_LIMITS
    keeps_prefixes: bool = True
    exact_replay: int = 1000
    goals: dict[int, int] = field(default_factory=dict)  # sequence -> length at which it is done
    done: dict[int, Sequence] = field(default_factory=dict)
    slots: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # (token, size of its micro-batch)
    ring: deque[tuple[int, Step]] = field(default_factory=deque)
    log: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ids, self.batches = count(1), count(1)
        self.sequences: dict[int, Sequence] = {}
        self.reset()

    def reset(self) -> list[Sequence]:
        moved = self.scheduler.displace_all() if hasattr(self, "scheduler") else []
        self.scheduler = Scheduler(
            n_slots=self.n_slots,
            n_ubatch=N_UBATCH,
            limits=self.limits,
            keeps_prefixes=self.keeps_prefixes,
            exact_replay=self.exact_replay,
        )
        self.ring.clear()
        for sequence in moved:
            self.scheduler.add(sequence)
        return moved

    def add(self, prompt: list[int], answer: int) -> Sequence:
        sequence = Sequence(next(self.ids), list(prompt), len(prompt))
        self.goals[sequence.id] = len(prompt) + answer
        self.sequences[sequence.id] = sequence
        self.scheduler.add(sequence)
        return sequence

    def submit(self) -> Step | None:
        for placed in self.scheduler.admit():
            others = [s.slot for s in self.sequences.values() if s is not placed and s.id not in self.done]
            assert placed.slot not in others, "a slot is shared"
        step = self.scheduler.next_step()
        if step is None:
            return None
        batch_id = next(self.batches)
        sequence = self.sequences[step.sequence]
        for op in self.scheduler.sent(batch_id, step):
            self._apply(op)
        held = self.slots.setdefault(step.slot, [])
        assert sequence.slot == step.slot and step.start == len(held), "not the next position"
        assert [token for token, _ in held] == sequence.tokens[: step.start], "another sequence's tokens"
        assert 0 < step.end - step.start <= N_UBATCH
        held += [(token, step.end - step.start) for token in sequence.tokens[step.start : step.end]]
        assert step.wants_logits == (step.end == len(sequence.tokens))
        self.ring.append((batch_id, step))
        self.log.append(step)
        assert len(self.ring) <= self.limits.in_flight
        return step

    def _apply(self, op: KvOp) -> None:
        if op.kind == "clear":
            self.slots.clear()
        else:
            assert op.kind == "remove" and op.p1 == -1
            assert self.keeps_prefixes or op.p0 == 0, "part of a state that cannot be rolled back"
            del self.slots.setdefault(op.seq, [])[op.p0 :]

    def answer_one(self) -> None:
        batch_id, step = self.ring.popleft()
        arrival = self.scheduler.arrived(batch_id)
        if arrival is None or not step.wants_logits:
            return
        _, sequence = arrival
        sequence.tokens.append(sum(sequence.tokens) % 7)
        if len(sequence.tokens) >= self.goals[sequence.id]:
            shapes = [size for _, size in self.slots[step.slot]]
            assert shapes == expected_shapes(sequence, len(shapes)), (
                "a shape depends on more than the request"
            )
            self.end(sequence)

    def end(self, sequence: Sequence) -> None:
        self.done[sequence.id] = sequence
        self.scheduler.drop(sequence)

    def run_dry(self) -> None:
        while self.submit() is not None or self.ring:
            if self.scheduler.next_step() is None and self.ring:
                self.answer_one()


def expected_shapes(sequence: Sequence, length: int) -> list[int]:
    """Chunks on the grid for the prompt, single tokens after it."""
    whole, rest = divmod(sequence.prompt_length, N_UBATCH)
    shapes = [N_UBATCH] * (whole * N_UBATCH) + [rest] * rest
    return shapes + [1] * (length - len(shapes))


prompts = st.lists(st.integers(0, 1), min_size=1, max_size=19)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("add"), prompts, st.integers(1, 6)),
        st.tuples(st.just("submit")),
        st.tuples(st.just("answer")),
        st.tuples(st.just("cancel"), st.integers(0, 9)),
        st.tuples(st.just("switch")),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(actions, st.integers(1, 3), st.integers(1, 4), st.booleans())
def test_every_token_is_computed_once_in_order_in_its_own_shape(
    script: list[tuple], n_slots: int, hops: int, keeps_prefixes: bool
) -> None:
    """Bench checks slot, position, token and shape of every step; here, that everything ends."""
    bench = Bench(n_slots=n_slots, limits=Limits.of_ring(hops, 2), keeps_prefixes=keeps_prefixes)
    for action in script:
        match action:
            case ("add", prompt, answer):
                bench.add(prompt, answer)
            case ("submit",):
                bench.submit()
            case ("answer",) if bench.ring:
                bench.answer_one()
            case ("cancel", which):
                live = [s for s in bench.sequences.values() if s.id not in bench.done]
                if live:
                    bench.end(live[which % len(live)])
            case ("switch",):
                bench.reset()
    bench.run_dry()
    assert set(bench.done) == set(bench.sequences)
    assert bench.scheduler.active == bench.scheduler.waiting == bench.scheduler.in_flight == 0


def test_a_long_prompt_is_sent_back_to_back() -> None:
    bench = Bench(limits=Limits.of_ring(hops=4, spare=2))
    bench.add([1] * 40, 1)
    spans = [(step.start, step.end) for step in iter(bench.submit, None)]
    assert spans == [(0, 4), (4, 8), (8, 12), (12, 16), (16, 20), (20, 24)]
    bench.answer_one()
    assert bench.submit() is not None and bench.submit() is None


def test_decode_goes_before_prompts_and_prompts_still_advance() -> None:
    bench = Bench(n_slots=3, limits=Limits(in_flight=7, prefill_beside_decode=2))
    talker = bench.add([1], 40)
    bench.submit()
    bench.answer_one()
    bench.add([1] * 200, 1)
    bench.add([1] * 200, 1)
    between = defaultdict(int)
    for _ in range(90):
        while bench.submit() is not None:
            pass
        bench.answer_one()
    turns = [index for index, step in enumerate(bench.log) if step.sequence == talker.id]
    gaps = [b - a - 1 for a, b in pairwise(turns)]
    assert len(turns) >= 20 and max(gaps) <= 2, gaps  # at most `prefill_beside_decode` chunks between
    for step in bench.log:
        between[step.sequence] += 1
    one, other = (between[sequence] for sequence in (2, 3))
    assert min(one, other) > 10 and abs(one - other) <= 1


@given(st.integers(2, 6), st.integers(2, 6))
def test_many_decoding_sequences_take_turns(n: int, in_flight: int) -> None:
    bench = Bench(n_slots=n, limits=Limits(in_flight=in_flight, prefill_beside_decode=1))
    for _ in range(n):
        bench.add([1], 10**6)
    for _ in range(30 * n):
        while bench.submit() is not None:
            pass
        bench.answer_one()
    later = bench.log[len(bench.log) // 2 :]  # the first prompts were a different matter
    served = [sum(step.sequence == sequence for step in later) for sequence in bench.sequences]
    assert max(served) - min(served) <= 1


def test_a_prompt_gets_its_place_beside_many_decoding_sequences() -> None:
    bench = Bench(n_slots=9, limits=Limits(in_flight=3, prefill_beside_decode=2))
    for _ in range(8):
        bench.add([1], 10**6)
    for _ in range(40):
        while bench.submit() is not None:
            pass
        bench.answer_one()
    newcomer = bench.add([1] * 40, 2)
    for _ in range(60):
        while bench.submit() is not None:
            pass
        bench.answer_one()
    assert newcomer.id in bench.done


def test_decoding_keeps_one_token_on_the_ring() -> None:
    bench = Bench(limits=Limits.of_ring(3, 2))
    bench.add([1] * 5, 9)
    while bench.submit() is not None:
        pass
    while bench.ring:
        bench.answer_one()
        while bench.submit() is not None:
            pass
        assert len(bench.ring) <= 1
    decode = [step for step in bench.log if step.start >= 5]
    assert all(step.end - step.start == 1 and step.wants_logits for step in decode) and len(decode) == 8


def test_replay_pipelines_generated_tokens_one_by_one() -> None:
    bench = Bench(limits=Limits.of_ring(2, 2))
    sequence = bench.add([1] * 6, 9)
    for _ in range(6):
        while bench.submit() is not None:
            pass
        bench.answer_one()
    generated = len(sequence.tokens) - 6
    assert generated >= 3
    bench.log.clear()
    bench.reset()
    steps = list(iter(bench.submit, None))
    assert [(s.start, s.end, s.wants_logits) for s in steps[:3]] == [
        (0, 4, False),
        (4, 6, False),
        (6, 7, False),
    ]
    assert sequence.phase is Phase.PREFILL
    bench.run_dry()
    replayed = [step for step in bench.log if step.end <= 6 + generated]
    assert [step.wants_logits for step in replayed] == [False] * (len(replayed) - 1) + [True]


def test_replay_in_chunks_where_exactness_is_given_up() -> None:
    sequence = Sequence(1, [1] * 11, 6, slot=0)
    assert [sequence.next_step(4, exact_replay=0).end] == [4]
    sequence.sent = 4
    assert sequence.next_step(4, exact_replay=0).end == 8
    sequence.sent = 10
    assert sequence.next_step(4, exact_replay=0).end == 11


# Slots


def test_slot_with_the_longest_prefix_is_taken_and_cut_to_whole_chunks() -> None:
    table = SlotTable(3, N_UBATCH, keeps_prefixes=True)
    for owner in range(3):
        assert table.take(owner, [9]) is not None
    assert table.take(3, [9]) is None
    table.release(0, [1, 2, 3, 4])
    table.release(1, [1, 2, 3, 4, 5, 6, 7, 8])
    table.release(2, [1, 2, 3, 9, 5, 6, 7, 8])
    assert table.kept_tokens == 20
    grant = table.take(4, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert grant is not None and (grant.slot, grant.reused) == (1, 8)
    assert grant.op == KvOp("remove", seq=1, p0=8)
    grant = table.take(5, [1, 2, 3, 4])  # the last prompt token is computed again, so its chunk is
    assert grant is not None and grant.reused == 0


def test_slot_unused_for_longest_is_taken_where_nothing_matches() -> None:
    table = SlotTable(3, N_UBATCH, keeps_prefixes=True)
    for owner in range(3):
        table.take(owner, [9])
    for slot in (2, 0, 1):
        table.release(slot, [slot] * 8)
    taken = [table.take(owner, [7] * 9) for owner in range(3)]
    assert [grant.slot for grant in taken if grant] == [2, 0, 1]
    assert all(grant is not None and grant.op.p0 == 0 for grant in taken)


def test_a_state_that_cannot_be_rolled_back_is_not_reused() -> None:
    table = SlotTable(1, N_UBATCH, keeps_prefixes=False)
    table.take(1, [1] * 9)
    assert table.release(0, [1] * 8) == KvOp("remove", seq=0, p0=0)
    grant = table.take(2, [1] * 9)
    assert grant is not None and (grant.reused, grant.op.p0) == (0, 0)


def test_only_chunks_known_to_be_computed_are_kept() -> None:
    bench = Bench(n_slots=1, limits=Limits.of_ring(4, 2))
    first = bench.add([1] * 17, 1)
    while bench.submit() is not None:
        pass
    bench.answer_one()
    bench.answer_one()
    bench.end(first)
    assert bench.scheduler.kept_tokens == 8
    second = bench.add([1] * 17, 1)
    bench.submit()
    assert second.slot == first.slot or second.sent >= 8
    assert bench.log[-1].start == 8
    bench.run_dry()
    assert bench.scheduler.kept_tokens == 16


def test_a_damaged_slot_is_not_reused() -> None:
    bench = Bench(n_slots=1)
    sequence = bench.add([1] * 9, 3)
    while bench.submit() is not None:
        pass
    bench.answer_one()
    bench.scheduler.drop(sequence, damaged=True)
    bench.done[sequence.id] = sequence
    bench.add([1] * 9, 1)
    bench.submit()
    assert bench.log[-1].start == 0


def test_a_refused_batch_leaves_its_operations_to_the_next() -> None:
    scheduler = Scheduler(n_slots=1, n_ubatch=4, limits=Limits(2, 1), keeps_prefixes=True, exact_replay=1000)
    scheduler.add(Sequence(1, [1, 2], 2))
    list(scheduler.admit())
    step = scheduler.next_step()
    assert step is not None
    ops = scheduler.sent(1, step)
    assert [op.kind for op in ops] == ["clear", "remove"]
    scheduler.refused(1, ops)
    assert scheduler.in_flight == 0
    assert scheduler.sent(2, step) == ops
