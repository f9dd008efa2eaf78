"""The engine on the bundled model: the text of llama-cpp-python, whatever else is going on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from llama_cpp import Llama

from edged.backend.native import load_window
from edged.planning.plan import ContextOptions, Hop, Plan
from edged.ring.memory import MemoryNetwork
from edged.ring.ring import Result, Ring
from edged.ring.stage import Stage
from edged.serving.engine import Engine
from edged.serving.generation import GenerateRequest, Generation, Sampling, Usage
from edged.serving.tokenizer import Tokenizer
from edged.store.catalogue import Catalogue
from edged.store.compose import compose
from edged.store.manifest import Manifest

pytestmark = pytest.mark.model

CONTEXT = ContextOptions(n_ctx=256, n_seq_max=4, n_ubatch=16)
N_TOKENS = 24
GREEDY = Sampling(temperature=0)
PROMPTS = [
    "The capital of France is",
    "Water boils at",
    "def fibonacci(n):\n",
    "Once upon a time, in a village by the sea, there lived an old fisherman. He had three daughters and",
    "1, 2, 3, 5, 8, 13, 21,",
    "The three laws of robotics are",
    "Dear Sir or Madam,\n\nI am writing to",
    "Once upon a time, in a village by the sea, there lived an old fisherman. He had three sons. The",
]

MakeRing = Callable[[Engine, list[tuple[str, int, int]]], Ring]


@pytest.fixture(scope="module")
def expected(model_path: Path) -> list[list[int]]:
    """Greedy tokens of the whole file."""
    llama = Llama(
        str(model_path),
        n_ctx=CONTEXT.n_ctx,
        n_batch=CONTEXT.n_ubatch,
        n_ubatch=CONTEXT.n_ubatch,
        n_threads=1,
        n_threads_batch=1,
        flash_attn=True,  # what `auto` comes to on a CPU
        verbose=False,
    )
    answers = []
    for prompt in PROMPTS:
        llama.reset()
        prompt_tokens = llama.tokenize(prompt.encode(), add_bos=True, special=True)
        answer: list[int] = []
        for token in llama.generate(prompt_tokens, temp=0.0):
            if token in (llama.token_eos(), 0) or len(answer) == N_TOKENS:
                break
            answer.append(token)
        answers.append(answer)
    return answers


@pytest.fixture
def engine(tokenizer: Tokenizer) -> Iterator[Engine]:
    engine = Engine(model="smol", tokenizer=tokenizer)
    yield engine
    engine.close()


@pytest.fixture
def make_ring(manifest: Manifest, catalogue: Catalogue) -> Iterator[MakeRing]:
    """Rings of windows (device, first, last) that begin and end at the device `a`, attached to an engine."""
    with ExitStack() as stack:

        def make(engine: Engine, windows: list[tuple[str, int, int]]) -> Ring:
            plan = Plan(
                epoch=1,
                model=manifest.id,
                n_layers=manifest.n_layers,
                hops=tuple(Hop(device=device, first=first, last=last) for device, first, last in windows),
                context=CONTEXT,
            )
            loaded = {
                index: load_window(compose(manifest, catalogue, hop.first, hop.last), CONTEXT, n_threads=1)
                for index, hop in enumerate(plan.hops)
            }
            for window in loaded.values():
                stack.callback(window.close)

            def of(device: str) -> dict[int, object]:
                return {hop: loaded[hop] for hop in plan.hops_of(device)}

            def deliver(result: Result) -> None:
                engine.deliver(result.batch_id, result.logits, result.failure)

            network = MemoryNetwork()
            ring = Ring(plan, of("a"), network.transport("a"), deliver, lambda _: None)
            stack.callback(ring.close)
            for device in plan.devices[1:]:
                stage = Stage(plan, device, of(device), network.transport(device), lambda _: None)
                stack.callback(stage.close)
                stage.connect()
            ring.connect()
            engine.attach(ring, CONTEXT, hops=len(plan.hops))
            return ring

        yield make


WHOLE = [("a", 0, 30)]
THREE = [("a", 0, 9), ("b", 9, 21), ("a", 21, 30)]


def request(prompt: str, **fields: object) -> GenerateRequest:
    options: dict[str, object] = {"max_tokens": N_TOKENS, "sampling": GREEDY} | fields
    return GenerateRequest(prompt=prompt, **options)  # type: ignore[arg-type]


def read(generation: Generation) -> tuple[list[int], Usage]:
    events = list(generation)
    usage = events[-1].usage
    assert usage is not None
    return [token for event in events for token in event.token_ids], usage


def test_greedy_text_is_llama_cpp_pythons(
    engine: Engine, make_ring: MakeRing, expected: list[list[int]]
) -> None:
    make_ring(engine, WHOLE)
    found = [read(engine.generate(request(prompt)))[0] for prompt in PROMPTS]
    assert found == expected
    assert all(len(answer) == N_TOKENS for answer in expected[:5])


def test_eight_at_once_on_three_windows(
    engine: Engine, make_ring: MakeRing, expected: list[list[int]]
) -> None:
    make_ring(engine, THREE)
    generations = [engine.generate(request(prompt)) for prompt in PROMPTS]
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        assert [tokens for tokens, _ in pool.map(read, generations)] == expected


def test_a_reused_prefix_gives_the_same_draws(engine: Engine, make_ring: MakeRing) -> None:
    """Sampled hot, so that any difference in the logits would show."""
    make_ring(engine, WHOLE)
    long_prompt = PROMPTS[3] * 3
    hot = request(long_prompt, sampling=Sampling(temperature=1.5, seed=3, top_k=0, top_p=1.0, min_p=0.0))
    fresh, again = read(engine.generate(hot)), read(engine.generate(hot))
    assert fresh[0] == again[0] and len(set(fresh[0])) > N_TOKENS // 2
    assert (fresh[1].cached_tokens, again[1].cached_tokens % CONTEXT.n_ubatch) == (0, 0)
    assert again[1].cached_tokens >= again[1].prompt_tokens - CONTEXT.n_ubatch - 1


def test_another_ring_in_the_middle_of_an_answer(
    engine: Engine, make_ring: MakeRing, expected: list[list[int]]
) -> None:
    make_ring(engine, WHOLE)
    generations = [engine.generate(request(prompt)) for prompt in PROMPTS[:3]]
    begun = threading.Event()
    answers: list[list[int]] = [[] for _ in generations]

    def collect(index: int) -> None:
        for event in generations[index]:
            answers[index] += event.token_ids
            if len(answers[index]) == 8:
                begun.set()

    readers = [threading.Thread(target=collect, args=(index,)) for index in range(3)]
    for reader in readers:
        reader.start()
    assert begun.wait(60)
    engine.detach()
    make_ring(engine, THREE)
    for reader in readers:
        reader.join(60)
    assert answers == expected[:3]
    assert engine.stats().switches == 2
