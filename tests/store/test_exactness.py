"""The oracle: windows composed from parts give the logits of the original file, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edged.backend.native import NativeWindow, load_window
from edged.backend.window import Batch
from edged.planning.plan import ContextOptions
from edged.store.architectures.table import TIED_OUTPUT
from edged.store.catalogue import Catalogue
from edged.store.compose import compose
from edged.store.importer import import_model
from edged.store.manifest import Manifest
from tests.models.architectures import FAMILIES, Shape
from tests.models.random_models import write_random_model
from tests.store.reference import reference_logits

CONTEXT = ContextOptions(n_ctx=64, n_seq_max=1, n_ubatch=32, flash_attention="off")
PROMPT = 16
STEPS = 4


def windows_logits(
    manifest: Manifest, catalogue: Catalogue, cuts: list[int], tokens: np.ndarray
) -> np.ndarray:
    """Logits of every token, the first PROMPT in one batch and the rest one by one."""
    edges = list(zip([0, *cuts], [*cuts, manifest.n_layers], strict=True))
    windows: list[NativeWindow] = []
    try:
        for first, last in edges:
            windows.append(load_window(compose(manifest, catalogue, first, last), CONTEXT, n_threads=1))
        rows = []
        for start, end in [(0, PROMPT), *((at, at + 1) for at in range(PROMPT, len(tokens)))]:
            state = tokens[start:end]
            count = end - start
            batch = Batch(
                seq_ids=np.zeros(count, np.int32),
                positions=np.arange(start, end, dtype=np.int32),
                outputs=np.ones(count, np.bool_),
            )
            for window in windows[:-1]:
                state = window.run(batch, state)
            rows.append(windows[-1].run_last(batch, state))
        return np.concatenate(rows)
    finally:
        for window in windows:
            window.close()


def check(path: Path, home: Path, cuts: list[list[int]]) -> Manifest:
    catalogue = Catalogue(home)
    manifest = import_model(path, catalogue)
    tokens = np.random.default_rng(1).integers(0, manifest.n_vocab, PROMPT + STEPS, dtype=np.int32)
    expected = reference_logits(path, tokens, PROMPT, CONTEXT.n_ctx)
    assert np.ptp(expected) > 0.1
    for cut in cuts:
        got = windows_logits(manifest, catalogue, cut, tokens)
        assert np.array_equal(got, expected), f"cut at {cut}: differs by {np.abs(got - expected).max()}"
    return manifest


# The windows run here in any case: trying them in a child first would only take time.
pytestmark = pytest.mark.usefixtures("untried")


@pytest.mark.parametrize("architecture", sorted(FAMILIES))
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_every_row_is_exact(architecture: str, tied: bool, tmp_path: Path) -> None:
    if tied and not FAMILIES[architecture].may_tie:
        assert architecture not in TIED_OUTPUT
        return
    path = write_random_model(tmp_path / "model.gguf", architecture, Shape(tied=tied))
    manifest = check(path, tmp_path, [[], [1], [4], [1, 3], [1, 2, 3, 4]])
    assert manifest.boundaries == (1, 2, 3, 4)
    assert manifest.tied == tied


@pytest.mark.parametrize("weights", ["Q4_0", "Q8_0", "F16"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_quantised_weights_are_exact(weights: str, tied: bool, tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "model.gguf", "llama", Shape(tied=tied), weights)
    check(path, tmp_path, [[], [2], [1, 4]])


@pytest.mark.parametrize("architecture", ["internlm2", "qwen2moe"])
@pytest.mark.parametrize("n_embd", [128, 256])
def test_the_unread_embedding_of_any_type_is_accepted(architecture: str, n_embd: int, tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "model.gguf", architecture, Shape(n_layers=2, n_embd=n_embd), "Q8_0")
    check(path, tmp_path, [[1]])


def test_lists_per_layer_are_sliced(tmp_path: Path) -> None:
    lists: dict[str, object] = {"feed_forward_length": [96] * 5, "attention.head_count_kv": [2] * 5}
    path = write_random_model(tmp_path / "model.gguf", "llama", hyperparameters=lists)
    check(path, tmp_path, [[], [2], [1, 4]])


def test_a_recurrent_model(tmp_path: Path) -> None:
    manifest = check(write_random_model(tmp_path / "model.gguf", "mamba"), tmp_path, [[], [2], [1, 2, 3]])
    assert manifest.recurrent


@pytest.mark.model
def test_the_bundled_model_is_exact(bundled_file: Path, tmp_path: Path) -> None:
    manifest = check(bundled_file, tmp_path, [[], [10, 20]])
    assert manifest.boundaries == tuple(range(1, 30))
