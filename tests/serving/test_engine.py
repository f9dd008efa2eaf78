"""The engine with a model that notices every mix-up: see `fake_ring.py`."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edged.errors import (
    ContextOverflowError,
    InvalidRequestError,
    ModelError,
    OverloadedError,
    RingBrokenError,
    UnknownModelError,
    WindowError,
)
from edged.planning.plan import ContextOptions
from edged.ring.frame import Failure
from edged.serving.engine import Engine, EngineSettings
from edged.serving.generation import GenerateEvent, GenerateRequest, Generation, Message, Sampling
from edged.serving.tokenizer import Tokenizer
from tests.serving.fake_ring import FakeRing, HistoryModel

CONTEXT = ContextOptions(n_ctx=128, n_seq_max=3, n_ubatch=8)
HOPS = 3
SAMPLED = Sampling(seed=5, temperature=1.0, repeat_penalty=1.2)


class Bench:
    """An engine and the rings it has had."""

    def __init__(self, tokenizer: Tokenizer, **settings: object) -> None:
        self.now = 0.0
        self.tokenizer = tokenizer
        self.engine = Engine(
            model="toy",
            tokenizer=tokenizer,
            settings=EngineSettings(**settings),  # type: ignore[arg-type]
            clock=lambda: self.now,
        )
        self.rings: list[FakeRing] = []

    def ring(self, context: ContextOptions = CONTEXT, **options: object) -> FakeRing:
        model = HistoryModel(self.tokenizer.n_vocab, context.n_seq_max, context.n_ctx)
        ring = FakeRing(model, self.engine.deliver, **options)  # type: ignore[arg-type]
        self.rings.append(ring)
        return ring

    def attach(self, context: ContextOptions = CONTEXT, **options: object) -> FakeRing:
        ring = self.ring(context, **options)
        self.engine.attach(ring, context, HOPS)
        return ring

    def settle(self) -> None:
        """Until the engine has taken everything that was posted to it so far."""
        done = threading.Event()
        self.engine._post(done.set)
        assert done.wait(30)

    def close(self) -> None:
        self.engine.close()
        for ring in self.rings:
            ring.close()


@pytest.fixture
def make_bench(tokenizer: Tokenizer) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**settings: object) -> Bench:
        made.append(Bench(tokenizer, **settings))
        return made[-1]

    yield make
    for bench in made:
        bench.close()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()


def ask(prompt: str = "Once upon a time there was", **fields: object) -> GenerateRequest:
    options: dict[str, object] = {"max_tokens": 20, "sampling": SAMPLED, "ignore_eos": True} | fields
    return GenerateRequest(prompt=prompt, **options)  # type: ignore[arg-type]


def read(generation: Generation) -> tuple[str, list[int], GenerateEvent]:
    """Text, tokens and the last event."""
    events = list(generation)
    assert all(event.finish_reason is None and event.usage is None for event in events[:-1])
    tokens = [token for event in events for token in event.token_ids]
    return "".join(event.text for event in events), tokens, events[-1]


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


def test_too_many_requests(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(max_waiting=2)
    generations = [bench.engine.generate(ask()) for _ in range(2)]
    with pytest.raises(OverloadedError, match="2 requests wait"):
        bench.engine.generate(ask())
    generations[0].cancel()
    bench.settle()
    generations.append(bench.engine.generate(ask()))
    bench.attach()
    assert [read(generation)[2].finish_reason for generation in generations] == [
        "cancelled",
        "length",
        "length",
    ]


def test_requests_wait_for_a_ring_until_a_deadline(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(ring_wait_s=30.0)
    early = bench.engine.generate(ask())
    bench.settle()
    bench.now = 20.0
    late = bench.engine.generate(ask())
    bench.settle()
    bench.now = 31.0
    bench.settle()
    with pytest.raises(RingBrokenError, match="within 30 s"):
        read(early)
    assert bench.engine.stats().waiting == 1
    bench.attach()
    assert read(late)[2].finish_reason == "length"


def test_the_deadline_needs_no_nudge(tokenizer: Tokenizer) -> None:
    engine = Engine(model="toy", tokenizer=tokenizer, settings=EngineSettings(ring_wait_s=0.05))
    try:
        with pytest.raises(RingBrokenError):
            read(engine.generate(ask()))
    finally:
        engine.close()


def test_context(bench: Bench, tokenizer: Tokenizer) -> None:
    bench.attach()
    bench.settle()
    token = tokenizer.encode("a", add_special=False, parse_special=False)[0]
    with pytest.raises(ContextOverflowError, match="128 tokens; with a context of 128 it may have 127"):
        bench.engine.generate(GenerateRequest(prompt=(token,) * 128))
    for length in (127, 100, 1):
        request = GenerateRequest(prompt=(token,) * length, sampling=SAMPLED, ignore_eos=True)
        _, tokens, last = read(bench.engine.generate(request))
        assert len(tokens) == 128 - length and last.finish_reason == "length"
    bench.engine.detach()
    bench.settle()
    waiting = bench.engine.generate(GenerateRequest(prompt=(token,) * 128))  # nobody knows the context yet
    bench.attach()
    with pytest.raises(ContextOverflowError):
        read(waiting)


def test_an_answer_longer_than_the_next_rings_context_ends_there(bench: Bench) -> None:
    ring = bench.attach()
    ring.allow(40)
    generation = bench.engine.generate(ask("One", max_tokens=None))
    ring.wait_held()
    bench.attach(ContextOptions(n_ctx=16, n_seq_max=2, n_ubatch=8))
    ring.allow(None)
    _, tokens, last = read(generation)
    assert last.finish_reason == "length" and 30 < len(tokens) < 60


def test_requests_that_make_no_sense(bench: Bench) -> None:
    bad = [
        GenerateRequest(),
        GenerateRequest(prompt="a", messages=(Message(role="user", content="b"),)),
        GenerateRequest(prompt=""),
        GenerateRequest(prompt=()),
        GenerateRequest(prompt=(10**6,)),
        GenerateRequest(prompt="a", stop=("",)),
        GenerateRequest(prompt="a", sampling=Sampling(logit_bias={10**6: 1.0})),
        GenerateRequest(messages=()),
    ]
    for request in bad:
        with pytest.raises(InvalidRequestError):
            bench.engine.generate(request)
    with pytest.raises(UnknownModelError, match=r"'other'.*'toy'"):
        bench.engine.generate(ask(model="other"))
    bench.attach()
    assert read(bench.engine.generate(ask(model="toy")))[2].finish_reason == "length"


def test_ends_at_an_end_token(bench: Bench, tokenizer: Tokenizer) -> None:
    ring = bench.attach()
    plain = ring.model.logits

    def ending(history: list[tuple[int, int]]) -> np.ndarray:
        logits = plain(history)
        if len(history) > 12:
            logits[max(tokenizer.end_tokens)] = 1000.0
        return logits

    ring.model.logits = ending  # type: ignore[method-assign]
    text, tokens, last = read(bench.engine.generate(ask(ignore_eos=False, max_tokens=None)))
    assert last.finish_reason == "stop" and last.usage is not None
    assert last.usage.completion_tokens == len(tokens) > 0 and not set(tokens) & set(tokenizer.end_tokens)
    assert "<|" not in text
    _, tokens, last = read(bench.engine.generate(ask(ignore_eos=True)))
    assert last.finish_reason == "length" and len(tokens) == 20


def test_stop_strings(bench: Bench) -> None:
    bench.attach()
    text, _, _ = read(bench.engine.generate(ask(max_tokens=30)))
    stop = text[len(text) // 2 :][:7]
    cut, tokens, last = read(bench.engine.generate(ask(max_tokens=30, stop=("not there", stop))))
    assert last.finish_reason == "stop" and cut == text[: text.index(stop)]
    assert last.usage is not None and last.usage.completion_tokens == len(tokens) < 30


def test_chat_goes_through_the_template(bench: Bench, tokenizer: Tokenizer) -> None:
    ring = bench.attach()
    chat = GenerateRequest(messages=(Message(role="user", content="Hi"),), max_tokens=1, sampling=SAMPLED)
    read(bench.engine.generate(chat))
    sent = [token for frame in ring.submitted for token in frame.tokens.tolist()]
    text = b"".join(tokenizer.piece(token) for token in sent).decode()
    assert "Hi" in text and sent.count(tokenizer.bos) == 3  # `<|im_start|>` before system, user and assistant


def test_async_reading_does_not_block_the_loop(bench: Bench) -> None:
    ring = bench.attach()
    expected = read(bench.engine.generate(ask()))[:2]
    ring.allow(3)

    async def go() -> tuple[str, list[int]]:
        generation = bench.engine.generate(ask())
        text, tokens = "", []

        async def consume() -> None:
            nonlocal text
            async for event in generation:
                text += event.text
                tokens.extend(event.token_ids)
                began.set()

        began = asyncio.Event()
        reader = asyncio.create_task(consume())
        await began.wait()
        assert await asyncio.to_thread(ring.wait_held) is None  # the loop runs while the ring holds back
        assert not reader.done()
        ring.allow(None)
        await reader
        return text, tokens

    assert asyncio.run(asyncio.wait_for(go(), 30)) == expected


def test_async_reader_that_goes_away_cancels(bench: Bench) -> None:
    ring = bench.attach()
    ring.allow(3)

    async def go() -> None:
        async def consume() -> None:
            async for _ in bench.engine.generate(ask(max_tokens=None)):
                seen.set()

        seen = asyncio.Event()
        reader = asyncio.create_task(consume())
        await seen.wait()
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader

    asyncio.run(asyncio.wait_for(go(), 30))
    bench.settle()
    ring.allow(None)
    assert bench.engine.stats().cancelled == 1 and bench.engine.stats().active == 0


def test_async_errors_are_raised(bench: Bench) -> None:
    bench.attach(fail=lambda _: Failure("window_error", "no luck", "pi"))

    async def go() -> None:
        async for _ in bench.engine.generate(ask()):
            raise AssertionError("no event was due")

    with pytest.raises(WindowError, match="no luck"):
        asyncio.run(go())


def test_close_ends_everything_clearly(bench: Bench) -> None:
    ring = bench.attach()
    ring.allow(2)
    generations = [bench.engine.generate(ask()) for _ in range(5)]
    ring.wait_held()
    gate = threading.Event()
    bench.engine._post(lambda: gate.wait(30))  # the engine is busy while one more is asked for
    generations.append(bench.engine.generate(ask()))
    closing = threading.Thread(target=bench.engine.close)
    closing.start()
    with bench.engine._arrived:
        assert bench.engine._arrived.wait_for(lambda: bench.engine._closing, 30)
    gate.set()
    closing.join(30)
    bench.engine.close()
    for generation in generations:
        with pytest.raises(ModelError, match="unloaded"):
            read(generation)
    with pytest.raises(ModelError, match="unloaded"):
        bench.engine.generate(ask())
    assert not [
        thread for thread in threading.enumerate() if thread.name == "edged-engine" and thread.is_alive()
    ]


def test_times_and_counts(bench: Bench) -> None:
    ring = bench.ring()
    plain = ring.model.run

    def slow(*arguments: object) -> np.ndarray:
        bench.now += 0.010
        return plain(*arguments)  # type: ignore[arg-type]

    ring.model.run = slow  # type: ignore[method-assign, assignment]
    bench.engine.attach(ring, CONTEXT)
    usage = read(bench.engine.generate(ask("One two three", max_tokens=11)))[2].usage
    assert usage is not None
    assert usage.prefill_ms == pytest.approx(10.0) and usage.decode_ms == pytest.approx(100.0)
    stats = bench.engine.stats()
    assert stats.ttft_ms == pytest.approx(10.0) and stats.tpot_ms == pytest.approx(10.0)
    assert (stats.requests, stats.prompt_tokens, stats.completion_tokens) == (1, usage.prompt_tokens, 11)
