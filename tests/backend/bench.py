"""Windows of a random model over one streamer, to be compared with the whole model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edged.backend.native import NativeWindow, load_window
from edged.backend.residency import Residency, Streamer
from edged.backend.window import Batch, KvOp
from edged.planning.plan import ContextOptions
from edged.store.catalogue import Catalogue
from edged.store.compose import compose
from edged.store.manifest import Manifest
from tests.models.architectures import Shape

SHAPE = Shape(n_layers=6, n_embd=256, n_ff=512, n_ctx=128)
MIXTURE = Shape(n_layers=4, n_embd=256, n_ff=256, n_ctx=128, n_experts=16, n_experts_used=2)
CONTEXT = ContextOptions(n_ctx=64, n_seq_max=2, n_ubatch=32, flash_attention="off")
PROMPT = 12
STEPS = 4
CUTS = [0, 2, 6]


@dataclass(frozen=True)
class Model:
    """A model in a store, and what it computes as a whole."""

    home: Path
    manifest: Manifest
    tokens: npt.NDArray[np.int32]
    expected: npt.NDArray[np.float32]


@dataclass
class Bench:
    """Windows of a model over one streamer."""

    model: Model
    images: Path
    streamer: Streamer
    windows: list[NativeWindow] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.manifest = self.model.manifest
        self.tokens = self.model.tokens
        self.expected = self.model.expected
        self.images.mkdir()

    def residency(
        self, first: int, last: int, streamed: Sequence[int], spare: int = 0, output_key: str = ""
    ) -> Residency:
        keys = tuple(self.manifest.layer(index).sha256 for index in range(first, last))
        return Residency(self.streamer, self.images, keys, tuple(streamed), spare, output_key)

    def load(
        self,
        cuts: list[int],
        streamed: Sequence[int],
        spare: int = 0,
        *,
        output: bool = False,
        threads: int = 1,
    ) -> None:
        """Windows between the cuts; `streamed` counts layers from the model's first. `output`: the output
        matrix is streamed too.
        """
        for first, last in pairwise(cuts):
            inside = [layer - first for layer in streamed if first <= layer < last]
            streams_output = output and last == self.manifest.n_layers
            source = compose(self.manifest, Catalogue(self.model.home), first, last, fed=streams_output)
            key = self.manifest.output_key if streams_output else ""
            residency = self.residency(first, last, inside, spare, key)
            self.windows.append(load_window(source, CONTEXT, threads, residency=residency))

    def run(self, first: int, last: int, seq: int = 0) -> npt.NDArray[np.float32]:
        """Logits of the tokens [first, last), in one batch."""
        batch = Batch(
            seq_ids=np.full(last - first, seq, np.int32),
            positions=np.arange(first, last, dtype=np.int32),
            outputs=np.ones(last - first, np.bool_),
        )
        state: npt.NDArray[np.int32] | npt.NDArray[np.float32] = self.tokens[first:last]
        for window in self.windows[:-1]:
            state = window.run(batch, state)
        return self.windows[-1].run_last(batch, state)

    def check(self, seq: int = 0) -> None:
        """Prompt and steps, which have to be those of the whole model."""
        for first, last in [(0, PROMPT), *((at, at + 1) for at in range(PROMPT, PROMPT + STEPS))]:
            assert np.array_equal(self.run(first, last, seq), self.expected[first:last]), f"token {first}"
        self.forget()

    def forget(self) -> None:
        for window in self.windows:
            assert window.apply(KvOp("clear"))

    def close(self) -> None:
        while self.windows:
            self.windows.pop().close()

    @property
    def streamed_bytes(self) -> int:
        return sum(window.residency.streamed for window in self.windows)

    @property
    def resident_bytes(self) -> int:
        return sum(window.residency.resident for window in self.windows)


MakeBench = Callable[..., Bench]
