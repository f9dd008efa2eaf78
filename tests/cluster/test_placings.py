from __future__ import annotations

from pathlib import Path

from edged.cluster.placings import placings_of
from edged.planning.plan import ContextOptions, Hop, Plan
from edged.planning.streamed import spread
from edged.store.catalogue import Catalogue
from edged.store.importer import import_model
from tests.models.architectures import Shape
from tests.models.random_models import write_random_model


def test_a_device_gets_its_windows_layers_and_one_read_ahead(tmp_path: Path) -> None:
    file = write_random_model(tmp_path / "model.gguf", "llama", Shape(n_layers=6))
    manifest = import_model(file, Catalogue(tmp_path))
    plan = Plan(
        epoch=1,
        model=manifest.id,
        n_layers=6,
        hops=(
            Hop(device="head", first=0, last=3, streamed=2, read_ahead=2),
            Hop(device="a", first=3, last=5),
            Hop(device="head", first=5, last=6, streamed=1, read_ahead=1),
        ),
        context=ContextOptions(n_ctx=64, n_seq_max=1, n_ubatch=16),
    )
    layers = [manifest.layer(index) for index in range(6)]
    mine = placings_of(plan, "head", manifest)
    assert sorted(mine) == [0, 2]
    assert mine[0].streamed == spread(3, 2)
    assert mine[0].keys == tuple(layer.sha256 for layer in layers[:3])
    assert mine[2].streamed == (0,)
    assert {one.read_ahead for one in mine.values()} == {2 * max(layer.weight_bytes for layer in layers[:3])}
    other = placings_of(plan, "a", manifest)[1]
    assert (other.streamed, other.read_ahead) == ((), 0)
    assert other.keys == tuple(layer.sha256 for layer in layers[3:5])
