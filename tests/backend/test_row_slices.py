"""Matrices of streamed layers in slices: the same logits bit for bit, and no more memory than slices need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edged.errors import WindowError
from tests.backend.bench import CUTS, PROMPT, SHAPE, STEPS, MakeBench
from tests.models.architectures import FAMILIES

SLICE = 2**16  # bytes: the matrices of these models have up to four
HALF = SHAPE.n_embd * SHAPE.n_ff  # bytes of a matrix of the feed-forward part in f16: twice this


@pytest.mark.parametrize("weights", ["F32", "F16", "Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("streamed", [(), (1, 4), range(6)], ids=["none", "some", "all"])
def test_logits_are_those_of_the_whole_model(
    weights: str, streamed: Sequence[int], make_bench: MakeBench
) -> None:
    bench = make_bench(weights=weights, slice_bytes=SLICE)
    bench.load(CUTS, streamed)
    bench.check()
    bench.check(seq=1)
    assert (bench.streamed_bytes > 0) == (len(streamed) > 0)


@pytest.mark.parametrize("architecture", sorted(FAMILIES))
def test_every_architecture(architecture: str, make_bench: MakeBench) -> None:
    bench = make_bench(architecture, read_ahead=2**18, slice_bytes=SLICE)
    bench.load(CUTS, range(6), spare=600_000)
    bench.check()
    assert bench.streamed_bytes > 0


def test_two_threads_compute_the_same(make_bench: MakeBench) -> None:
    bench = make_bench(weights="Q4_0", slice_bytes=SLICE)
    bench.load(CUTS, range(6), spare=100_000, threads=2)
    bench.check()


def test_the_slots_hold_two_slices_and_each_token_reads_what_is_streamed(make_bench: MakeBench) -> None:
    bench = make_bench(read_ahead=2 * SLICE, slice_bytes=SLICE)
    bench.load(CUTS, [0, 3, 4])
    assert bench.streamer.counts.slots == 2 * SLICE < HALF * 2
    before = bench.streamer.counts
    for at in range(PROMPT + STEPS):
        bench.run(at, at + 1)
    after = bench.streamer.counts
    assert after.wasted == before.wasted
    assert abs(after.read - before.read - (PROMPT + STEPS) * bench.streamed_bytes) <= after.slots


def test_what_can_be_kept_is_counted_by_slices(make_bench: MakeBench) -> None:
    bench = make_bench(slice_bytes=SLICE)
    bench.load([0, 6], range(6))
    everything = bench.streamed_bytes
    for spare in (SLICE, 3 * SLICE, 7 * SLICE):
        bench.windows[0].stream(range(6), spare)
        assert bench.resident_bytes == spare
        assert bench.streamed_bytes == everything - spare
        bench.check()
    bench.windows[0].stream([], 0)
    assert bench.streamed_bytes == 0
    bench.check()


def test_slices_change_places_in_the_middle_of_a_sequence(make_bench: MakeBench) -> None:
    bench = make_bench(weights="Q4_0", slice_bytes=SLICE // 2)
    bench.load(CUTS, range(6), 200_000)
    assert np.array_equal(bench.run(0, PROMPT), bench.expected[:PROMPT])
    for step, (streamed, spare) in enumerate([(range(4), 0), ([0, 2], 100_000), ([], 0), (range(4), 50_000)]):
        bench.windows[1].stream(list(streamed), spare)
        at = PROMPT + step
        assert np.array_equal(bench.run(at, at + 1), bench.expected[at : at + 1])


def test_a_matrix_that_cannot_be_cut_takes_from_what_is_spare(make_bench: MakeBench) -> None:
    odd = replace(SHAPE, n_ff=510)  # rows that kernels do not take four at a time
    bench = make_bench(shape=odd, read_ahead=2 * SLICE, slice_bytes=SLICE)
    bench.load(CUTS, range(6))
    whole = odd.n_embd * odd.n_ff * 2
    slots = bench.streamer.counts.slots
    assert slots >= whole > 2 * SLICE
    bench.close()
    spare = 4 * whole
    bench.load([0, 6], range(6), spare)
    assert 0 < bench.resident_bytes <= spare - (slots - 2 * SLICE)
    bench.check()


def test_a_spoiled_slice_is_noticed_and_made_again(make_bench: MakeBench) -> None:
    bench = make_bench(read_ahead=0, slice_bytes=SLICE)
    bench.load(CUTS, range(6))
    for image in bench.images.iterdir():
        content = bytearray(image.read_bytes())
        content[len(content) // 2] ^= 1
        image.write_bytes(content)
    bench.check()


@pytest.mark.parametrize("slice_bytes", [SLICE, 2**22], ids=["slices", "whole"])
def test_what_could_not_be_moved_is_computed_all_the_same(slice_bytes: int, make_bench: MakeBench) -> None:
    bench = make_bench(slice_bytes=slice_bytes)
    bench.load([0, 6], range(6))
    images = sorted(bench.images.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    bench.close()
    for image in images[2:]:  # the first layers can go, the others cannot
        image.unlink()
        Path(image).mkdir()
    bench.load([0, 6], [])
    with pytest.raises(WindowError):
        bench.windows[0].stream(range(6))
    assert bench.windows[0].residency.streamed > 0
    bench.check()
