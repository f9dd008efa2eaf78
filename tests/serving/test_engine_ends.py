"""How answers end, what is refused, and reading from asyncio, with the model of `fake_ring.py`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

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
from edged.serving.generation import GenerateRequest, Message, Sampling
from edged.serving.tokenizer import Tokenizer
from tests.serving.bench import CONTEXT, SAMPLED, Bench, ask, read


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
    bench.engine.attach(bench.ring(), CONTEXT)
    read(bench.engine.generate(ask("One", max_tokens=1)))  # the new ring is in use
    stats = bench.engine.stats()
    assert stats.tpot_ms is None and (stats.switches, stats.completion_tokens) == (2, 12)
