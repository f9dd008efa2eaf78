"""Streamed layers: the same logits bit for bit, the least bytes from disk, what happens without the disk."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edged.backend.native import NativeWindow, load_window
from edged.backend.window import Batch, KvOp
from edged.errors import WindowError
from edged.planning.streamed import spread
from edged.store.catalogue import Catalogue
from edged.store.compose import compose
from tests.backend.bench import CONTEXT, CUTS, MIXTURE, PROMPT, SHAPE, Bench, MakeBench
from tests.models.architectures import FAMILIES, Shape


@pytest.mark.parametrize("weights", ["F16", "Q4_0", "Q8_0"])
@pytest.mark.parametrize("streamed", [(), (1, 4), range(6)], ids=["none", "some", "all"])
@pytest.mark.parametrize("cuts", [[0, 6], CUTS, [0, 1, 3, 6]], ids=lambda cuts: f"{len(cuts) - 1}-windows")
def test_logits_are_those_of_the_whole_model(
    weights: str, streamed: Sequence[int], cuts: list[int], make_bench: MakeBench
) -> None:
    bench = make_bench(weights=weights)
    bench.load(cuts, streamed)
    bench.check()
    bench.check(seq=1)
    assert (bench.streamed_bytes > 0) == (len(streamed) > 0)
    assert (bench.resident_bytes > 0) == (len(streamed) < SHAPE.n_layers)


@pytest.mark.parametrize("architecture", sorted(FAMILIES))
def test_every_architecture_can_be_streamed(architecture: str, make_bench: MakeBench) -> None:
    bench = make_bench(architecture, read_ahead=2**22)
    bench.load(CUTS, range(6))
    bench.check()
    assert bench.streamed_bytes > 0


@pytest.mark.parametrize("cuts", [[0, 6], CUTS], ids=["one-window", "two-windows"])
def test_each_token_reads_what_is_streamed_and_no_more(cuts: list[int], make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.load(cuts, [0, 3, 4])
    before = bench.streamer.counts
    for at in range(30):
        bench.run(at % len(bench.tokens), at % len(bench.tokens) + 1)
        if at % len(bench.tokens) == len(bench.tokens) - 1:
            bench.forget()
    after = bench.streamer.counts
    assert after.wasted == 0
    ahead = after.slots  # of the tokens before the first and after the last
    assert abs(after.read - before.read - 30 * bench.streamed_bytes) <= ahead


@pytest.mark.parametrize("weights", ["F16", "Q4_0"])
@pytest.mark.parametrize("share", [0.1, 1.0])
def test_spare_memory_keeps_tensors_of_streamed_layers(
    weights: str, share: float, make_bench: MakeBench
) -> None:
    bench = make_bench(weights=weights, read_ahead=0)
    bench.load(CUTS, range(6))
    everything = bench.streamed_bytes
    assert bench.resident_bytes == 0
    bench.close()
    largest = max(tensor.nbytes for tensor in bench.manifest.layer(0).tensors)
    spare = int(share * everything / 2)  # of the smaller window more, of the larger one less
    bench.load(CUTS, range(6), spare)
    kept = bench.resident_bytes
    assert bench.streamed_bytes == everything - kept
    for window in bench.windows:
        of_window = window.residency
        assert of_window.resident <= spare
        assert of_window.streamed == 0 or of_window.resident > spare - largest
    bench.check()
    bench.check(seq=1)
    before = bench.streamer.counts
    for at in range(10):
        bench.run(at, at + 1)
    after = bench.streamer.counts
    assert abs(after.read - before.read - 10 * bench.streamed_bytes) <= after.slots
    assert after.wasted == before.wasted


@pytest.mark.parametrize("architecture", sorted(FAMILIES))
def test_every_architecture_can_be_streamed_in_part(architecture: str, make_bench: MakeBench) -> None:
    bench = make_bench(architecture, read_ahead=2**18)
    bench.load(CUTS, range(6), spare=600_000)
    bench.check()
    assert bench.streamed_bytes > 0


def test_what_is_spare_changes_in_the_middle_of_a_sequence(make_bench: MakeBench) -> None:
    bench = make_bench(weights="Q4_0")
    bench.load(CUTS, range(6), 200_000)
    everything = bench.streamed_bytes + bench.resident_bytes
    assert np.array_equal(bench.run(0, PROMPT), bench.expected[:PROMPT])
    held = [bench.resident_bytes]
    for step, (streamed, spare) in enumerate(
        [(range(4), 500_000), ([0, 2], 100_000), ([], 300_000), (range(4), 0)]
    ):
        bench.windows[1].stream(list(streamed), spare)
        at = PROMPT + step
        assert np.array_equal(bench.run(at, at + 1), bench.expected[at : at + 1])
        assert bench.resident_bytes + bench.streamed_bytes == everything
        held.append(bench.resident_bytes)
    assert held[0] < held[1] < held[2] < held[3] > held[4]


def test_a_lost_image_of_a_layer_that_is_there_in_part_is_made_again(make_bench: MakeBench) -> None:
    bench = make_bench(weights="Q4_0", read_ahead=0)
    bench.load(CUTS, range(6), 200_000)
    bench.check()
    held = bench.resident_bytes
    for image in bench.images.iterdir():
        os.truncate(image, 4096)
        image.unlink()
    bench.check()
    assert len(list(bench.images.iterdir())) == SHAPE.n_layers
    assert bench.resident_bytes == held


def test_the_slots_keep_to_the_read_ahead(make_bench: MakeBench) -> None:
    bench = make_bench(read_ahead=700_000)
    bench.load(CUTS, range(6))
    assert bench.streamer.counts.slots <= 700_000
    bench.check()
    assert bench.streamer.counts.slots <= 700_000


LARGEST = SHAPE.n_embd * SHAPE.n_ff * 2  # bytes: a matrix of the feed-forward part in f16


@pytest.mark.parametrize("read_ahead", [0, LARGEST * 7 // 4, 2 * LARGEST, 4 * LARGEST])
def test_one_tensor_and_the_beginning_of_the_next_are_enough(read_ahead: int, make_bench: MakeBench) -> None:
    bench = make_bench(read_ahead=read_ahead)
    bench.load(CUTS, range(6))
    bench.check()
    bench.check(seq=1)
    assert bench.streamer.counts.slots == max(LARGEST * 3 // 2, read_ahead)
    assert bench.streamer.counts.wasted == 0


@pytest.mark.parametrize("read_ahead", [0, 2 * LARGEST])
def test_windows_may_run_at_once(read_ahead: int, make_bench: MakeBench) -> None:
    """More is held then than slots have room for, for as long as it lasts."""
    bench = make_bench(read_ahead=read_ahead)
    bench.load(CUTS, range(6))
    first, last = bench.windows
    batch = Batch(
        seq_ids=np.zeros(1, np.int32), positions=np.zeros(1, np.int32), outputs=np.ones(1, np.bool_)
    )
    between = first.run(batch, bench.tokens[:1])
    expected = last.run_last(batch, between)
    slots = bench.streamer.counts.slots

    def again(run: Callable[[], npt.NDArray[np.float32]], window: NativeWindow) -> bool:
        same = True
        for _ in range(40):
            window.apply(KvOp("clear"))
            same &= np.array_equal(run(), between if window is first else expected)
        return same

    with ThreadPoolExecutor(2) as threads:
        runs = [
            threads.submit(again, lambda: first.run(batch, bench.tokens[:1]), first),
            threads.submit(again, lambda: last.run_last(batch, between), last),
        ]
        assert all(run.result(timeout=60) for run in runs)
    assert bench.streamer.counts.slots == slots


def test_layers_change_places_while_the_window_runs(make_bench: MakeBench) -> None:
    bench = make_bench(weights="Q4_0")
    bench.load([0, 6], [])
    window = bench.windows[0]
    everything = bench.resident_bytes
    at = 0
    for streamed in ([], [2, 5], [0, 1, 2, 3, 4, 5], [1], []):
        window.stream(streamed)  # in the middle of a sequence
        assert window.streamed == tuple(streamed)
        assert bench.resident_bytes + bench.streamed_bytes == everything
        assert bench.resident_bytes == everything * (6 - len(streamed)) // 6
        for _ in range(3):
            # the reference computes the prompt in one batch; one by one its tokens are compared below
            bench.run(at, at + 1)
            at += 1
    bench.forget()
    bench.check()
    counts = bench.streamer.counts
    bench.check()
    assert bench.streamer.counts.read == counts.read  # nothing is streamed any more
    assert counts.slots == 0


def test_what_is_streamed_does_not_change_a_sequence_under_way(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.load(CUTS, [])
    assert np.array_equal(bench.run(0, PROMPT), bench.expected[:PROMPT])
    for step, streamed in enumerate([[0, 3], [1, 2, 3], [3], []]):
        bench.windows[1].stream(streamed)
        at = PROMPT + step
        assert np.array_equal(bench.run(at, at + 1), bench.expected[at : at + 1])


@pytest.mark.parametrize("weights", ["F16", "Q4_0"])
@pytest.mark.parametrize("read_ahead", [0, 2**23], ids=["no-room", "room"])
def test_experts_are_read_as_they_are_used(weights: str, read_ahead: int, make_bench: MakeBench) -> None:
    bench = make_bench("qwen3moe", weights, read_ahead, MIXTURE)
    bench.load([0, 2, 4], range(4))
    bench.check()
    bench.check()
    expert = bench.streamed_bytes // (MIXTURE.n_layers * MIXTURE.n_experts)  # of one layer: three slices
    used = MIXTURE.n_experts_used * expert
    bench.run(0, 1)
    before = bench.streamer.counts
    for at in range(1, 11):
        bench.run(at, at + 1)
    read = bench.streamer.counts.read - before.read
    pages = 10 * MIXTURE.n_layers * MIXTURE.n_experts_used * 3 * 2 * 4096  # at both ends of each slice
    assert read <= 10 * MIXTURE.n_layers * used + pages
    if read_ahead:
        assert read < 5 * MIXTURE.n_layers * used  # most are still there
        assert bench.streamer.counts.slots <= read_ahead
    else:
        assert read >= 10 * MIXTURE.n_layers * used * 3 // 4
        assert bench.streamer.counts.slots <= used + pages


def test_experts_come_home_and_leave_again(make_bench: MakeBench) -> None:
    bench = make_bench("qwen3moe", "Q4_0", 2**20, MIXTURE)
    bench.load([0, 4], [])
    everything = bench.resident_bytes
    bench.windows[0].stream([0, 2, 3])
    assert bench.streamed_bytes < everything * 3 // 4  # what all tokens use stays
    bench.check()
    bench.windows[0].stream([2])
    bench.check()
    bench.windows[0].stream([])
    assert bench.resident_bytes == everything
    assert bench.streamer.counts.slots == 0
    bench.check()


def test_lost_experts_are_made_again_or_the_run_fails(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench("qwen3moe", "Q4_0", 0, MIXTURE)
    bench.load([0, 4], [1, 3])
    for image in bench.images.iterdir():
        os.truncate(image, 4096)
    bench.check()
    parts = bench.model.home / "store" / "parts"
    parts.rename(tmp_path / "away")
    for image in bench.images.iterdir():
        os.truncate(image, 4096)
    with pytest.raises(WindowError, match="cannot be made again"):
        bench.run(0, PROMPT)
    (tmp_path / "away").rename(parts)
    bench.check()


@pytest.mark.parametrize("read_ahead", [0, 2**20, 2**22])
def test_experts_whose_images_are_lost_may_still_change_places(
    read_ahead: int, make_bench: MakeBench
) -> None:
    bench = make_bench("qwen3moe", "Q4_0", read_ahead, MIXTURE)
    bench.load([0, 4], [2, 3])
    bench.check()
    for image in bench.images.iterdir():
        image.unlink()
    for streamed in ([2, 3], [1, 2, 3], [3], [2, 3]):
        bench.windows[0].stream(streamed)
        bench.check()


def spoil(images: Path) -> None:
    """Writes over all of every image but its header, in place."""
    for image in images.iterdir():
        with image.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (image.stat().st_size - 4096))


@pytest.mark.parametrize(
    ("architecture", "shape"), [("llama", SHAPE), ("qwen3moe", MIXTURE)], ids=["dense", "experts"]
)
def test_what_is_spoiled_on_disk_is_noticed_by_what_comes_of_it(
    architecture: str, shape: Shape, make_bench: MakeBench
) -> None:
    bench = make_bench(architecture, "F16", 0, shape)
    bench.load([0, shape.n_layers], range(shape.n_layers))
    bench.check()
    spoil(bench.images)
    bench.forget()
    with pytest.raises(WindowError, match="may be damaged"):
        for at in range(PROMPT):  # what is in memory still is sound
            bench.run(at, at + 1)
    bench.forget()
    bench.check()
    bench.check(seq=1)


def test_what_is_spoiled_on_disk_is_noticed_in_time(make_bench: MakeBench) -> None:
    bench = make_bench(weights="Q4_0", read_ahead=0)
    bench.load(CUTS, range(6))
    bench.check()
    for image in bench.images.iterdir():
        with image.open("r+b") as file:
            file.seek(image.stat().st_size // 2)
            file.write(b"x")
    for _ in range(8):
        for at in range(PROMPT):
            bench.run(at, at + 1)
        bench.forget()
    bench.check()


def test_a_damaged_expert_is_noticed_when_it_is_first_read(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench("qwen3moe", "Q4_0", 2**23, MIXTURE)
    bench.load([0, 4], [1, 3])
    bench.close()
    good = {image: image.read_bytes() for image in bench.images.iterdir()}
    first = min(expert_bytes(bench, number) for number in (1, 3))

    def damage() -> None:
        for image, content in good.items():
            spoilt = bytearray(content)
            for at in range(len(spoilt) - first // 2, 0, -first):  # a bit of every expert
                spoilt[at] ^= 1
            spoilt[:8192] = content[:8192]
            image.write_bytes(spoilt)

    damage()
    bench.load([0, 4], [1, 3])
    bench.check()
    assert {image: image.read_bytes() for image in good} == good
    bench.close()
    damage()
    bench.load([0, 4], [1, 3])
    parts = bench.model.home / "store" / "parts"
    parts.rename(tmp_path / "away")
    with pytest.raises(WindowError, match=r"is damaged; and it cannot be made again.*bring the model"):
        bench.run(0, PROMPT)
    (tmp_path / "away").rename(parts)
    bench.check()


def expert_bytes(bench: Bench, layer: int) -> int:
    """Of the smallest tensor with experts."""
    tensors = bench.manifest.layer(layer).tensors
    return min(one.nbytes // one.shape[2] for one in tensors if "_exps." in one.name)


def test_an_image_is_written_once(make_bench: MakeBench) -> None:
    bench = make_bench(weights="Q4_0")
    bench.load([0, 6], [1, 4])
    files = sorted(bench.images.iterdir())
    assert [file.suffix for file in files] == [".image"] * 2
    written = [file.stat().st_mtime_ns for file in files]
    bench.close()
    bench.load(CUTS, [1, 4])  # cut in another way, the same layers
    assert sorted(bench.images.iterdir()) == files
    assert [file.stat().st_mtime_ns for file in files] == written
    bench.check()


def test_a_damaged_image_is_made_anew(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.load([0, 6], [2])
    bench.close()
    (image,) = bench.images.iterdir()
    good = image.read_bytes()
    image.write_bytes(good[:-5000] + bytes([good[-5000] ^ 1]) + good[-4999:])
    bench.load([0, 6], [2])
    bench.check()
    assert image.read_bytes() == good


def test_an_image_of_another_layout_is_not_used(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.load([0, 6], [2])
    bench.close()
    (image,) = bench.images.iterdir()
    good = image.read_bytes()
    image.write_bytes(good[:8] + bytes(8) + good[16:])
    bench.load([0, 6], [2])
    bench.check()
    assert image.read_bytes() == good


def test_an_image_that_vanishes_is_made_again_from_the_part(make_bench: MakeBench) -> None:
    bench = make_bench(read_ahead=0)
    bench.load(CUTS, range(6))
    bench.check()
    for image in bench.images.iterdir():
        os.truncate(image, 4096)  # those who have it open find it empty
        image.unlink()
    bench.images.rmdir()
    bench.check()
    assert len(list(bench.images.iterdir())) == SHAPE.n_layers


@pytest.mark.root
def test_a_full_disk_is_said_and_no_obstacle_once_there_is_room(make_bench: MakeBench) -> None:
    bench = make_bench(read_ahead=0)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(bench.images)], check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        with pytest.raises(WindowError, match=r"No space left.*free some space there, or allow more memory"):
            bench.load([0, 6], range(6))
        assert all(image.suffix == ".image" for image in bench.images.iterdir())  # nothing half-written
        subprocess.run(["mount", "-o", "remount,size=64m", str(bench.images)], check=True)
        bench.load([0, 6], range(6))
        bench.check()
        bench.close()
    finally:
        subprocess.run(["umount", "-l", str(bench.images)], check=True)


def test_without_image_and_part_the_run_fails_and_recovers_when_the_part_is_back(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    bench = make_bench(read_ahead=0)
    bench.load(CUTS, [0, 3, 4])
    assert np.array_equal(bench.run(0, PROMPT), bench.expected[:PROMPT])
    parts = bench.model.home / "store" / "parts"
    parts.rename(tmp_path / "away")
    for image in bench.images.iterdir():
        os.truncate(image, 4096)
    for _ in range(2):
        with pytest.raises(WindowError, match=r"cannot be made again.*bring the model"):
            bench.run(PROMPT, PROMPT + 1)
            bench.run(PROMPT, PROMPT + 1)  # what was read ahead may have been enough for one
    (tmp_path / "away").rename(parts)
    bench.forget()
    bench.check()


def test_no_room_for_an_image_is_said(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.images.rmdir()
    bench.images.write_text("a file where the folder should be")
    with pytest.raises(WindowError, match=r"cannot load layers 0 to 5: cannot write .*images"):
        bench.load([0, 6], [2])
    bench.load([0, 6], [])
    with pytest.raises(WindowError, match="cannot write"):
        bench.windows[0].stream([1])
    assert bench.windows[0].streamed == ()
    bench.check()


def test_only_layers_of_the_window_can_be_streamed(make_bench: MakeBench) -> None:
    bench = make_bench()
    with pytest.raises(WindowError, match="no layer 6 to be streamed"):
        source = compose(bench.manifest, Catalogue(bench.model.home), 0, 6)
        load_window(source, CONTEXT, 1, residency=bench.residency(0, 6, [6]))
    bench.load([0, 6], [])
    with pytest.raises(WindowError, match="no layer -1"):
        bench.windows[0].stream([-1])


def test_threads_end_with_the_streamer(make_bench: MakeBench) -> None:
    def readers() -> int:
        names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
        return names.count("edged-reader")

    bench = make_bench()
    bench.load([0, 6], [])
    assert readers() == 0
    bench.windows[0].stream([3])
    bench.run(0, 1)
    assert readers() > 0
    bench.close()
    bench.streamer.close()
    assert readers() == 0


@pytest.mark.parametrize(
    ("n_layers", "streamed", "expected"),
    [(5, 0, ()), (5, 5, (0, 1, 2, 3, 4)), (6, 2, (2, 5)), (7, 1, (6,)), (8, 3, (1, 4, 7))],
)
def test_streamed_layers_are_spread(n_layers: int, streamed: int, expected: tuple[int, ...]) -> None:
    assert spread(n_layers, streamed) == expected
