"""The head's serving side: the engine of whichever model the ring holds, and a change of models."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from edged.backend.window import Logits
from edged.errors import ModelError, OverloadedError
from edged.planning.plan import Plan
from edged.ring.frame import Failure
from edged.serving.engine import Engine
from edged.serving.generation import GenerateRequest, Generation
from edged.serving.ring_port import RingPort
from edged.serving.statistics import EngineStats, Recorder
from edged.serving.tokenizer import Tokenizer
from edged.store.manifest import Manifest


class Head:
    """One engine at a time. Any thread.

    vocabulary: where the model's `vocab` part is.  ring: the ring that this device has joined as head.
    """

    def __init__(self, vocabulary: Callable[[Manifest], Path], ring: Callable[[], RingPort | None]) -> None:
        self._vocabulary = vocabulary
        self._ring = ring
        self._lock = threading.Lock()  # a change of models; the engine has its own
        self._engine: Engine | None = None
        self._tokenizer: Tokenizer | None = None
        self._manifest: Manifest | None = None

    @property
    def model(self) -> str:
        """Id of the model whose engine is here; empty before the first."""
        return self._manifest.id if self._manifest is not None else ""

    @property
    def is_busy(self) -> bool:
        stats = self.statistics
        return stats.active + stats.waiting > 0

    @property
    def statistics(self) -> EngineStats:
        engine = self._engine
        if engine is not None:
            return engine.stats()
        return Recorder().snapshot(attached=False, active=0, waiting=0, in_flight=0, reusable_tokens=0)

    def generate(self, request: GenerateRequest, manifest: Manifest) -> Generation:
        """An answer by this model. Raises OverloadedError where another one has taken its place, and what
        `Engine.generate` raises."""
        with self._lock:
            engine = self._engine if self.model == manifest.id else None
        if engine is None:
            raise OverloadedError(f"another model was loaded instead of {manifest.name}: try again")
        return engine.generate(request.model_copy(update={"model": None}))

    def attach(self, manifest: Manifest, plan: Plan) -> None:
        """The ring of `plan` is live. Raises ModelError for a vocabulary that will not load."""
        with self._lock:
            if self.model != manifest.id:
                self._unload()
                self._load(manifest)
            ring = self._ring()
            if ring is None or self._engine is None:
                raise ModelError("the ring went away while it was being taken over")
            self._engine.attach(ring, plan.context, hops=len(plan.hops))

    def detach(self) -> None:
        """The ring goes away; requests wait for the next."""
        engine = self._engine
        if engine is not None:
            engine.detach()

    def deliver(self, batch_id: int, logits: Logits | None, failure: Failure | None) -> None:
        """What the ring answers with."""
        engine = self._engine
        if engine is not None:
            engine.deliver(batch_id, logits, failure)

    def close(self) -> None:
        with self._lock:
            self._unload()

    def _load(self, manifest: Manifest) -> None:
        self._tokenizer = Tokenizer(self._vocabulary(manifest), manifest.name)
        self._engine = Engine(model=manifest.name, tokenizer=self._tokenizer, recurrent=manifest.recurrent)
        self._manifest = manifest

    def _unload(self) -> None:
        engine, tokenizer = self._engine, self._tokenizer
        self._engine = self._tokenizer = self._manifest = None
        if engine is not None:
            engine.close()
        if tokenizer is not None:
            tokenizer.close()
