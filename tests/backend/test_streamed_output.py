"""The output matrix in slices: the same logits bit for bit, whatever of it is in memory."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edged.backend.native import load_window
from edged.errors import WindowError
from edged.store.catalogue import Catalogue
from edged.store.compose import compose
from tests.backend.bench import CONTEXT, CUTS, MIXTURE, PROMPT, SHAPE, MakeBench
from tests.models.architectures import FAMILIES, Shape

LARGE = replace(SHAPE, n_vocab=4096)  # several slices, whatever the type
ODD = replace(SHAPE, n_vocab=4093)  # other kernels
EVEN = replace(SHAPE, n_vocab=4070)
TIED = replace(LARGE, tied=True)
SLICE = 512 * SHAPE.n_embd * 2  # bytes: as the largest matrix of a layer in f16


@pytest.mark.parametrize("weights", ["F32", "F16", "Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.parametrize("shape", [LARGE, ODD, EVEN, TIED], ids=["large", "odd", "even", "tied"])
def test_logits_are_those_of_the_whole_model(weights: str, shape: Shape, make_bench: MakeBench) -> None:
    bench = make_bench(weights=weights, shape=shape)
    bench.load(CUTS, [1, 4], output=True)
    bench.check()
    bench.check(seq=1)


@pytest.mark.parametrize(("weights", "shape"), [("F16", ODD), ("Q4_0", TIED), ("Q8_0", LARGE)])
def test_a_device_alone_streams_its_output_too(weights: str, shape: Shape, make_bench: MakeBench) -> None:
    bench = make_bench(weights=weights, shape=shape)
    bench.load([0, 6], [1, 4], output=True)
    bench.check()


def test_two_threads_compute_the_same(make_bench: MakeBench) -> None:
    bench = make_bench(weights="Q4_0", shape=TIED)
    bench.load(CUTS, range(6), output=True, threads=2)
    bench.check()


@pytest.mark.parametrize("architecture", sorted(FAMILIES))
def test_every_architecture(architecture: str, make_bench: MakeBench) -> None:
    bench = make_bench(architecture, read_ahead=2**20, shape=replace(SHAPE, n_vocab=1024))
    bench.load(CUTS, range(6), output=True)
    bench.check()


def test_each_token_reads_the_matrix_once(make_bench: MakeBench) -> None:
    bench = make_bench(shape=LARGE)
    bench.load(CUTS, [])
    resident = bench.resident_bytes
    bench.close()
    bench.load(CUTS, [], output=True)
    matrix = LARGE.n_vocab * LARGE.n_embd * 2
    assert bench.streamed_bytes == matrix
    assert bench.resident_bytes == resident  # what libllama holds itself is not counted among the layers
    bench.run(0, 1)
    before = bench.streamer.counts
    for at in range(1, 11):
        bench.run(at, at + 1)
    after = bench.streamer.counts
    assert abs(after.read - before.read - 10 * matrix) <= after.slots < matrix
    assert after.wasted == before.wasted == 0


def test_the_window_holds_no_output_matrix(make_bench: MakeBench) -> None:
    bench = make_bench(shape=LARGE)
    bench.load(CUTS, [])
    whole = bench.windows[-1].memory.weights
    bench.close()
    bench.load(CUTS, [], output=True)
    matrix = LARGE.n_vocab * LARGE.n_embd * 2
    assert bench.windows[-1].memory.weights < whole - matrix * 9 // 10


@pytest.mark.parametrize("streamed", [[], [2, 3, 4, 5]], ids=["layers-stay", "layers-too"])
def test_spare_memory_keeps_slices(streamed: list[int], make_bench: MakeBench) -> None:
    bench = make_bench(shape=LARGE)
    bench.load(CUTS, streamed, output=True)
    everything, none = bench.streamed_bytes, bench.resident_bytes
    bench.close()
    spare = 3 * SLICE
    bench.load(CUTS, streamed, spare, output=True)
    assert bench.resident_bytes == none + spare
    assert bench.streamed_bytes == everything - spare
    bench.check()
    bench.windows[1].stream([3], 2 * everything)
    assert bench.windows[1].residency.streamed == 0
    bench.check()
    bench.windows[1].stream([], 0)
    assert bench.windows[1].streamed == ()
    assert bench.windows[1].residency.streamed == LARGE.n_vocab * LARGE.n_embd * 2
    bench.check()


def test_a_mixture_streams_its_output_too(make_bench: MakeBench) -> None:
    bench = make_bench("qwen3moe", "Q4_0", 2**20, replace(MIXTURE, n_vocab=4096))
    bench.load([0, 2, 4], range(4), output=True)
    bench.check()


def test_a_lost_image_is_made_again_or_the_run_fails(make_bench: MakeBench, tmp_path: Path) -> None:
    bench = make_bench(read_ahead=0, shape=LARGE)
    bench.load(CUTS, [], output=True)
    (image,) = bench.images.iterdir()
    os.truncate(image, 4096)
    image.unlink()
    bench.check()
    parts = bench.model.home / "store" / "parts"
    parts.rename(tmp_path / "away")
    os.truncate(next(bench.images.iterdir()), 4096)
    with pytest.raises(WindowError, match="cannot be made again"):
        bench.run(0, PROMPT)
    (tmp_path / "away").rename(parts)
    bench.forget()
    bench.check()


def test_only_the_window_that_ends_the_model_can_and_not_where_it_reads_tokens(make_bench: MakeBench) -> None:
    bench = make_bench(shape=TIED)
    for first, last in [(0, 2), (0, 6)]:
        source = compose(bench.manifest, Catalogue(bench.model.home), first, last)
        residency = bench.residency(first, last, [], output_key=bench.manifest.output_key)
        with pytest.raises(WindowError, match="output matrix can only be streamed"):
            load_window(source, CONTEXT, 1, residency=residency)


def test_a_run_can_be_cancelled(make_bench: MakeBench) -> None:
    bench = make_bench(shape=LARGE)
    bench.load([0, 6], [], output=True)
    assert np.array_equal(bench.run(0, PROMPT), bench.expected[:PROMPT])
    bench.windows[0].cancel()  # what is under way; there is nothing
    bench.forget()
    bench.check()
