from __future__ import annotations

from pathlib import Path

from edged.backend.residency import SLICE_BYTES, Placing
from edged.cluster.placings import placings_of
from edged.planning.plan import ContextOptions, DeviceExpectation, Expectation, Hop, Plan
from edged.planning.streamed import spread
from edged.store.catalogue import Catalogue
from edged.store.importer import import_model
from edged.store.model_profile import model_profile
from tests.models.architectures import Shape
from tests.models.random_models import write_random_model

SMALL = Shape(n_layers=4)


def whole_pages(nbytes: int) -> int:
    return (nbytes + 4095) // 4096 * 4096


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
    largest = max(whole_pages(tensor.nbytes) for tensor in layers[0].tensors)
    room = 2 * layers[0].weight_bytes  # what the plan has for reading ahead
    read = 3 * layers[0].weight_bytes - (room - largest - largest // 8)
    assert {one.read_ahead for one in mine.values()} == {max(largest + largest // 8, read // 14)}
    spare = room - mine[0].read_ahead
    assert [mine[0].spare, mine[2].spare] == [spare * 2 // 3, spare // 3]  # by streamed layers
    other = placings_of(plan, "a", manifest)[1]
    assert (other.streamed, other.read_ahead, other.spare) == ((), 0, 0)
    assert other.keys == tuple(layer.sha256 for layer in layers[3:5])


def expected(device: str, memory_left: int) -> Expectation:
    of_device = DeviceExpectation(
        device=device,
        compute_ms=1,
        stall_ms=0,
        hop_ms=0,
        disk_ms=0,
        bytes_read=0,
        memory=1,
        memory_left=memory_left,
    )
    return Expectation(
        tpot_ms=1, ttft_ms_per_token=1, bytes_read_per_token=0, memory={device: 1}, devices=(of_device,)
    )


def planned(
    tmp_path: Path,
    architecture: str,
    left: int,
    shape: Shape = SMALL,
    streamed: int = 2,
    streams_output: bool = False,
) -> tuple[Placing, int]:
    """The only window's placing, and a layer's bytes."""
    file = write_random_model(tmp_path / "model.gguf", architecture, shape)
    manifest = import_model(file, Catalogue(tmp_path))
    plan = Plan(
        epoch=1,
        model=manifest.id,
        n_layers=shape.n_layers,
        hops=(
            Hop(
                device="head",
                first=0,
                last=shape.n_layers,
                streamed=streamed,
                read_ahead=1 if streamed else 0,
                streams_output=streams_output,
            ),
        ),
        context=ContextOptions(n_ctx=64, n_seq_max=1, n_ubatch=16),
        expected=expected("head", left),
    )
    return placings_of(plan, "head", manifest)[0], manifest.layer(0).weight_bytes


def test_what_the_plan_leaves_of_the_memory_keeps_tensors(tmp_path: Path) -> None:
    placing, layer = planned(tmp_path, "llama", 10_000)
    assert 0 < placing.read_ahead < layer
    assert placing.read_ahead + placing.spare == layer + 10_000


def test_large_matrices_are_read_in_slices(tmp_path: Path) -> None:
    shape = Shape(n_layers=2, n_embd=1024, n_ff=2560)
    placing, layer = planned(tmp_path, "llama", 0, shape)
    tensors = Catalogue(tmp_path).models()[0].layer(0).tensors
    assert max(tensor.nbytes for tensor in tensors) > SLICE_BYTES
    read = 2 * layer - (layer - SLICE_BYTES * 9 // 8)
    assert placing.read_ahead == SLICE_BYTES + max(SLICE_BYTES // 8, read // 32)
    assert placing.read_ahead + placing.spare == layer


def test_a_streamed_output_matrix_has_slots_and_may_stay_in_what_is_left(tmp_path: Path) -> None:
    placing, _ = planned(tmp_path, "llama", 10_000, streamed=0, streams_output=True)
    manifest = Catalogue(tmp_path).models()[0]
    assert placing.output_key == manifest.output_key
    assert placing.streamed == ()
    assert placing.streams
    largest = max(whole_pages(tensor.nbytes) for tensor in manifest.layer(0).tensors)
    slots = model_profile(manifest).output_slots
    assert largest < placing.read_ahead < min(slots, 2 * largest)
    assert placing.read_ahead + placing.spare == slots + 10_000


def test_a_plan_beyond_the_memory_grants_no_more_than_its_buffer(tmp_path: Path) -> None:
    placing, layer = planned(tmp_path, "llama", -10_000)
    assert placing.read_ahead + placing.spare == layer


def test_nothing_is_spare_where_nothing_is_streamed(tmp_path: Path) -> None:
    placing, _ = planned(tmp_path, "llama", 10_000, streamed=0)
    assert (placing.read_ahead, placing.spare) == (0, 0)


def test_experts_have_the_whole_buffer(tmp_path: Path) -> None:
    shape = Shape(n_layers=4, n_experts=4, n_experts_used=2)
    placing, layer = planned(tmp_path, "qwen3moe", 10_000, shape)
    assert (placing.read_ahead, placing.spare) == (layer, 0)
