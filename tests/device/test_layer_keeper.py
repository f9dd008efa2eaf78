"""Layers that make room and come back: what a window computes stays the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edged.backend.native import NativeWindow
from edged.backend.residency import Placing
from edged.backend.window import Batch, KvOp
from edged.device.layer_keeper import LayerKeeper
from edged.planning.plan import ContextOptions
from edged.store import probe
from edged.store.catalogue import Catalogue
from edged.store.compose import compose
from edged.store.importer import import_model
from edged.store.manifest import Manifest
from tests.models.architectures import Shape
from tests.models.random_models import write_random_model

SHAPE = Shape(n_layers=6, n_embd=256, n_ff=512)
CONTEXT = ContextOptions(n_ctx=64, n_seq_max=1, n_ubatch=16, flash_attention="off")
LAYER = 2 * (256 * 256 * 2 + 256 * 128 * 2 + 3 * 256 * 512)  # bytes of matrices in f16
BATCH = Batch(
    seq_ids=np.zeros(8, np.int32), positions=np.arange(8, dtype=np.int32), outputs=np.ones(8, np.bool_)
)
TOKENS = np.arange(5, 13, dtype=np.int32)

Load = Callable[..., NativeWindow]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Catalogue, Manifest]:
    home = tmp_path_factory.mktemp("home")
    file = write_random_model(home / "model.gguf", "llama", SHAPE, "F16")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "try_windows", lambda *_: None)
        manifest = import_model(file, Catalogue(home))
    return Catalogue(home), manifest


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[LayerKeeper]:
    keeper = LayerKeeper(1, tmp_path)
    yield keeper
    keeper.close()


@pytest.fixture
def load(stored: tuple[Catalogue, Manifest], keeper: LayerKeeper) -> Iterator[Load]:
    catalogue, manifest = stored
    loaded: list[NativeWindow] = []

    def load(first: int, last: int, *streamed: int, spare: int = 0) -> NativeWindow:
        keys = tuple(manifest.layer(index).sha256 for index in range(first, last))
        placing = Placing(keys, streamed=streamed, read_ahead=2 * LAYER if streamed else 0, spare=spare)
        loaded.append(keeper.load(compose(manifest, catalogue, first, last), CONTEXT, placing))
        return loaded[-1]

    yield load
    for window in loaded:
        window.close()


def logits(window: NativeWindow) -> npt.NDArray[np.float32]:
    result = window.run_last(BATCH, TOKENS)
    assert window.apply(KvOp("clear"))
    return result


def test_layers_are_given_up_and_taken_back(keeper: LayerKeeper, load: Load) -> None:
    window = load(0, 6)
    expected = logits(window)
    assert keeper.figures().resident == 6 * LAYER
    assert keeper.give_up(LAYER + 1) == 2 * LAYER
    assert window.streamed == (4, 5)
    figures = keeper.figures()
    assert (figures.resident, figures.streamed, figures.given_up) == (4 * LAYER, 2 * LAYER, 2)
    assert np.array_equal(logits(window), expected)
    assert keeper.figures().read > 0
    assert keeper.take_back(LAYER - 1) == 0
    assert keeper.take_back(LAYER) == LAYER
    assert window.streamed == (5,)
    assert keeper.take_back(10 * LAYER) == LAYER
    figures = keeper.figures()
    assert (figures.resident, figures.streamed, figures.given_up) == (6 * LAYER, 0, 0)
    assert np.array_equal(logits(window), expected)


def test_what_the_plan_streams_is_not_taken_back(keeper: LayerKeeper, load: Load) -> None:
    window = load(0, 6, 1, 3)
    assert keeper.figures().given_up == 0
    assert keeper.take_back(100 * LAYER) == 0
    assert window.streamed == (1, 3)


def test_spare_tensors_go_first_and_return_last(keeper: LayerKeeper, load: Load) -> None:
    window = load(0, 6, 1, 3, spare=LAYER // 2)
    expected = logits(window)
    kept = keeper.figures().resident - 4 * LAYER
    assert 0 < kept <= LAYER // 2
    assert keeper.figures().streamed == 2 * LAYER - kept
    assert keeper.give_up(1) == kept
    assert keeper.figures().given_up == 0  # the plan's layers are where it wants them
    assert np.array_equal(logits(window), expected)
    assert keeper.give_up(1) == LAYER
    assert keeper.figures().given_up == 1
    assert keeper.take_back(LAYER + LAYER // 2 - 1) == LAYER
    assert keeper.take_back(LAYER // 2) == kept
    assert keeper.take_back(10 * LAYER) == 0
    assert window.streamed == (1, 3)
    assert keeper.figures().resident == 4 * LAYER + kept
    assert np.array_equal(logits(window), expected)


def test_a_new_plan_changes_what_is_spare(keeper: LayerKeeper, load: Load) -> None:
    window = load(0, 6, 1, 3, spare=LAYER // 2)
    expected = logits(window)
    keeper.place(window, Placing((), streamed=(1, 3), read_ahead=2 * LAYER, spare=LAYER))
    assert 4 * LAYER + LAYER // 2 < keeper.figures().resident <= 5 * LAYER
    assert np.array_equal(logits(window), expected)
    keeper.place(window, Placing((), streamed=(1, 3), read_ahead=2 * LAYER))
    assert keeper.figures().resident == 4 * LAYER
    keeper.give_up(1)
    assert keeper.take_back(10 * LAYER) == LAYER
    assert keeper.figures().resident == 4 * LAYER
    assert np.array_equal(logits(window), expected)


def test_the_fullest_window_gives_first_and_no_more_than_there_is(keeper: LayerKeeper, load: Load) -> None:
    small, large = load(0, 2), load(2, 6)
    assert keeper.give_up(2 * LAYER) == 2 * LAYER
    assert (small.streamed, large.streamed) == ((), (2, 3))
    assert keeper.give_up(100 * LAYER) == 4 * LAYER
    assert keeper.figures().resident == 0
    assert keeper.give_up(1) == 0


def test_closed_windows_are_forgotten(keeper: LayerKeeper, load: Load) -> None:
    window = load(0, 6)
    keeper.give_up(1)
    window.close()
    figures = keeper.figures()
    assert (figures.resident, figures.streamed, figures.given_up, figures.read_ahead) == (0, 0, 0, 0)
    assert keeper.give_up(1) == 0
    assert keeper.take_back(10 * LAYER) == 0


def test_a_new_plan_settles_what_was_given_up(keeper: LayerKeeper, load: Load) -> None:
    window = load(0, 6)
    keeper.give_up(1)
    keeper.place(window, Placing((), streamed=(0,), read_ahead=4 * LAYER))
    assert window.streamed == (0,)
    figures = keeper.figures()
    assert figures.given_up == 0
    assert 3 * LAYER < figures.read_ahead <= 4 * LAYER
    keeper.place(window, Placing(()))
    assert window.streamed == ()
    assert keeper.figures().read_ahead == 0


def test_without_residency_all_of_a_window_that_does_not_fit_is_streamed(
    stored: tuple[Catalogue, Manifest], load: Load, tmp_path: Path
) -> None:
    catalogue, manifest = stored
    keys = tuple(manifest.layer(index).sha256 for index in range(6))
    keeper = LayerKeeper(1, tmp_path, resident=False)
    source = compose(manifest, catalogue, 0, 6)
    fits = keeper.load(source, CONTEXT, Placing(keys))
    too_large = keeper.load(source, CONTEXT, Placing(keys, streamed=(1,), read_ahead=2 * LAYER))
    assert fits.streamed == ()
    assert too_large.streamed == (0, 1, 2, 3, 4, 5)
    expected = logits(load(0, 6))
    assert np.array_equal(logits(too_large), expected)
    keeper.place(too_large, Placing(keys, streamed=(5,), read_ahead=2 * LAYER))
    assert too_large.streamed == (0, 1, 2, 3, 4, 5)
    for window in (fits, too_large):
        window.close()
    keeper.close()
