"""The engine with a model that notices every mix-up: see `fake_ring.py`."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edged.errors import (
    WindowError,
)
from edged.planning.plan import ContextOptions
from edged.ring.frame import Failure
from edged.serving.engine import Engine, EngineSettings
from edged.serving.generation import GenerateRequest, Sampling
from edged.serving.tokenizer import Tokenizer
from tests.serving.bench import CONTEXT, HOPS, Bench, ask, read
from tests.serving.fake_ring import FakeRing, HistoryModel

PROMPTS = [
    "One two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen",
    "A",
    "The quick brown fox jumps over the lazy dog, and then it goes home to sleep for a very long time.",
    "One two three four five six seven eight nine ten eleven twelve and something else entirely here",
    "€ 🙂 日本語のテキスト",
    "x" * 60,
    "One two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen seventeen",
    "def main():\n    print('hello')\n",
]


def test_an_answer_follows_the_model(bench: Bench, tokenizer: Tokenizer) -> None:
    """Held against a plain loop over the model, shapes included."""
    bench.attach()
    text, tokens, last = read(bench.engine.generate(ask(PROMPTS[2], sampling=Sampling(temperature=0))))
    prompt = tokenizer.encode(PROMPTS[2], add_special=True, parse_special=True)
    model = HistoryModel(tokenizer.n_vocab, 1, 10**6)
    whole, rest = divmod(len(prompt), CONTEXT.n_ubatch)
    sizes = [CONTEXT.n_ubatch] * (whole * CONTEXT.n_ubatch) + [rest] * rest
    history, expected = list(zip(prompt, sizes, strict=True)), []
    for _ in range(20):
        logits = model.logits(history)
        logits[list(tokenizer.end_tokens)] = -np.inf
        expected.append(int(np.argmax(logits)))
        history.append((expected[-1], 1))
    assert tokens == expected
    assert text == b"".join(map(tokenizer.piece, tokens)).decode("utf-8", errors="replace")
    assert last.finish_reason == "length" and last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (len(prompt), 20)


def test_eight_at_once_are_each_as_alone(make_bench: Callable[..., Bench]) -> None:
    alone = []
    for prompt in PROMPTS:
        single = make_bench()
        single.attach()
        alone.append(read(single.engine.generate(ask(prompt)))[:2])
    assert len({text for text, _ in alone}) == len(PROMPTS)
    together = make_bench()
    ring = together.attach()
    generations = [together.engine.generate(ask(prompt)) for prompt in PROMPTS]
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        found = [result[:2] for result in pool.map(read, generations)]
    assert found == alone
    assert 1 < ring.most_in_flight <= HOPS + EngineSettings().spare_frames
    stats = together.engine.stats()
    assert (stats.active, stats.waiting, stats.in_flight, stats.finished) == (0, 0, 0, 8)
    assert stats.completion_tokens == 8 * 20 and stats.attached


def test_a_reused_prefix_changes_nothing(bench: Bench) -> None:
    bench.attach()
    fresh = read(bench.engine.generate(ask(PROMPTS[0])))
    again = read(bench.engine.generate(ask(PROMPTS[0])))
    near = read(bench.engine.generate(ask(PROMPTS[6])))
    assert fresh[:2] == again[:2]
    for _, _, last in (again, near):
        assert last.usage is not None and last.usage.cached_tokens % CONTEXT.n_ubatch == 0
        assert last.usage.cached_tokens >= CONTEXT.n_ubatch
    assert fresh[2].usage is not None and fresh[2].usage.cached_tokens == 0
    assert bench.engine.stats().cached_tokens > 0


def test_the_next_turn_of_a_conversation_is_as_fresh(
    make_bench: Callable[..., Bench], tokenizer: Tokenizer
) -> None:
    """The slot also held the answer, computed token by token: that part must not be taken for a prompt."""
    bench, fresh = make_bench(), make_bench()
    bench.attach()
    fresh.attach()
    prompt = tuple(tokenizer.encode(PROMPTS[2], add_special=True, parse_special=True))
    _, answer, _ = read(bench.engine.generate(ask().model_copy(update={"prompt": prompt})))
    turn = ask().model_copy(update={"prompt": (*prompt, *answer, *prompt[:3])})
    text, tokens, last = read(bench.engine.generate(turn))
    assert (text, tokens) == read(fresh.engine.generate(turn))[:2]
    assert last.usage is not None
    assert last.usage.cached_tokens == len(prompt) // CONTEXT.n_ubatch * CONTEXT.n_ubatch > 0


def test_penalties_see_the_prompt_and_the_answer(bench: Bench) -> None:
    ring = bench.attach()
    steady = ring.model.logits([])
    ring.model.logits = lambda _: steady  # type: ignore[method-assign]
    order = [int(token) for token in np.argsort(-steady)[:6]]
    jealous = Sampling(temperature=0, presence_penalty=2.0, frequency_penalty=2.0, repeat_penalty=10.0)
    asked = GenerateRequest(prompt=(order[0], order[2]), sampling=jealous, max_tokens=3, ignore_eos=True)
    assert read(bench.engine.generate(asked))[1] == [order[1], order[3], order[4]]


def test_a_model_that_cannot_roll_back_reuses_nothing(tokenizer: Tokenizer) -> None:
    engine = Engine(model="toy", tokenizer=tokenizer, recurrent=True)
    ring = FakeRing(HistoryModel(tokenizer.n_vocab, CONTEXT.n_seq_max, CONTEXT.n_ctx), engine.deliver)
    try:
        engine.attach(ring, CONTEXT)
        results = [read(engine.generate(ask(PROMPTS[0]))) for _ in range(2)]
    finally:
        engine.close()
        ring.close()
    assert results[0][:2] == results[1][:2]
    assert [last.usage.cached_tokens for _, _, last in results if last.usage] == [0, 0]
    assert all(op.kind == "clear" or op.p0 == 0 for op in ring.model.applied)


def test_cancel_frees_the_slot_at_once_and_late_results_are_ignored(bench: Bench) -> None:
    ring = bench.attach(ContextOptions(n_ctx=128, n_seq_max=1, n_ubatch=8))
    ring.allow(4)
    cancelled = bench.engine.generate(ask(PROMPTS[0], max_tokens=None))
    ring.wait_held()
    expected = Bench(bench.tokenizer)
    try:
        expected.attach()
        alone = read(expected.engine.generate(ask(PROMPTS[3])))[:2]
    finally:
        expected.close()
    before = len(ring.submitted)
    following = bench.engine.generate(ask(PROMPTS[3]))
    cancelled.cancel()
    cancelled.cancel()
    ring.wait_held(2)  # the late frame, and behind it the next request's first: the slot was free at once
    taking = ring.submitted[before]
    assert taking.slot == 0 and [op.kind for op in taking.kv_ops] == ["remove", "remove"]
    ring.allow(None)
    assert read(following)[:2] == alone
    _, tokens, last = read(cancelled)
    assert last.finish_reason == "cancelled" and last.usage is not None
    assert last.usage.completion_tokens == len(tokens) > 0
    assert bench.engine.stats().cancelled == 1


def test_a_reader_that_stops_early_cancels(bench: Bench) -> None:
    bench.attach()
    for _ in bench.engine.generate(ask(max_tokens=None)):
        break
    gc.collect()
    bench.settle()
    assert bench.engine.stats().cancelled == 1 and bench.engine.stats().active == 0


@pytest.mark.parametrize("held_at", [2, 5, 9])
def test_switch_of_rings_mid_way_gives_the_same_text(make_bench: Callable[..., Bench], held_at: int) -> None:
    undisturbed = make_bench()
    undisturbed.attach()
    expected = [read(undisturbed.engine.generate(ask(prompt)))[:2] for prompt in PROMPTS[:4]]
    bench = make_bench()
    first = bench.attach()
    first.allow(held_at)
    generations = [bench.engine.generate(ask(prompt)) for prompt in PROMPTS[:4]]
    first.wait_held()
    bench.engine.detach()
    bench.settle()
    assert bench.engine.stats().waiting == 4 and not bench.engine.stats().attached
    first.allow(None)  # its late results must not count
    second = bench.attach()
    second.allow(3)
    second.wait_held()
    bench.attach(ContextOptions(n_ctx=100, n_seq_max=2, n_ubatch=8))  # without a detach, and with fewer slots
    second.allow(None)
    with ThreadPoolExecutor(4) as pool:
        found = [result[:2] for result in pool.map(read, generations)]
    assert found == expected
    assert bench.engine.stats().switches == 3


def test_a_broken_ring_is_a_pause(make_bench: Callable[..., Bench]) -> None:
    undisturbed = make_bench()
    undisturbed.attach()
    expected = read(undisturbed.engine.generate(ask()))[:2]
    bench = make_bench()
    results = iter(range(100))
    bench.attach(
        fail=lambda _: Failure("ring_broken", "nuc does not answer", "pi") if next(results) > 6 else None
    )
    generation = bench.engine.generate(ask())
    while bench.engine.stats().attached:
        bench.settle()
    refusing = bench.ring()
    refusing.broken = True
    bench.engine.attach(refusing, CONTEXT)
    bench.settle()
    bench.settle()
    assert not bench.engine.stats().attached  # `submit` raised
    bench.attach()
    assert read(generation)[:2] == expected


def test_failure_ends_only_its_own_sequence(bench: Bench) -> None:
    doomed = bench.tokenizer.encode(PROMPTS[5], add_special=True, parse_special=True)[0]

    def fail(frame: object) -> Failure | None:
        tokens = frame.tokens  # type: ignore[attr-defined]
        return Failure("window_error", "out of memory on pi", "pi") if doomed == tokens[0] else None

    bench.attach(fail=fail)
    generations = [bench.engine.generate(ask(prompt)) for prompt in PROMPTS[:6]]
    for generation in generations[:5]:
        assert read(generation)[2].finish_reason == "length"
    with pytest.raises(WindowError, match="out of memory on pi"):
        read(generations[5])
    assert bench.engine.stats().failed == 1 and bench.engine.stats().active == 0


def test_an_unknown_failure_code_is_still_an_error(bench: Bench) -> None:
    bench.attach(fail=lambda _: Failure("from_the_future", "something new", "pi"))
    with pytest.raises(Exception, match="something new") as raised:
        read(bench.engine.generate(ask()))
    assert raised.type.__name__ == "RingError"


def test_logits_that_are_no_numbers_end_the_answer_not_the_engine(bench: Bench) -> None:
    ring = bench.attach()
    sound, ring.model.logits = (
        ring.model.logits,
        lambda _: np.full(bench.tokenizer.n_vocab, np.nan, np.float32),
    )  # type: ignore[method-assign]
    with pytest.raises(WindowError, match="instead of a number"):
        read(bench.engine.generate(ask()))
    ring.model.logits = sound  # type: ignore[method-assign]
    assert read(bench.engine.generate(ask()))[2].finish_reason == "length"
