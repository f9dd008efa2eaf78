"""An engine, its rings, and what is asked of it."""

from __future__ import annotations

import threading

from edged.planning.plan import ContextOptions
from edged.serving.engine import Engine, EngineSettings
from edged.serving.generation import GenerateEvent, GenerateRequest, Generation, Sampling
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


def ask(prompt: str = "Once upon a time there was", **fields: object) -> GenerateRequest:
    options: dict[str, object] = {"max_tokens": 20, "sampling": SAMPLED, "ignore_eos": True} | fields
    return GenerateRequest(prompt=prompt, **options)  # type: ignore[arg-type]


def read(generation: Generation) -> tuple[str, list[int], GenerateEvent]:
    """Text, tokens and the last event."""
    events = list(generation)
    assert all(event.finish_reason is None and event.usage is None for event in events[:-1])
    tokens = [token for event in events for token in event.token_ids]
    return "".join(event.text for event in events), tokens, events[-1]
