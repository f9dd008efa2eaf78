"""Spoilt models, always the same ones: refused in one clear line, or used without harm."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from edged.errors import BrokenModelError, UnsupportedModelError
from edged.store.gguf_file import read_gguf
from edged.store.model_files import open_model
from tests.fuzz.image import Image, take_apart
from tests.fuzz.mutations import MUTATIONS, other_name, split_keys, spoil
from tests.models.random_models import write_random_model

_READ = 300  # spoilt headers
_USED = 60  # spoilt models that are imported and, if taken, run
_PEAK = 16 * 2**20  # bytes; the file has 0.3 MB


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return take_apart(write_random_model(tmp_path_factory.mktemp("fuzz") / "small.gguf"))


def test_what_is_taken_apart_is_put_together_again(sound: Image, tmp_path: Path) -> None:
    """Else the mutations below would all be refused for one and the same fault."""
    path = tmp_path / "again.gguf"
    path.write_bytes(sound.built())
    assert take_apart(path) == sound


def test_spoilt_headers_are_read_or_refused_in_one_line(sound: Image, tmp_path: Path) -> None:
    path = tmp_path / "spoilt.gguf"
    rng = random.Random(11)
    read = 0
    messages = set()
    tracemalloc.start()
    try:
        for _ in range(_READ):
            image, mutations = spoil(rng, sound)
            path.write_bytes(image.built())
            del image
            tracemalloc.reset_peak()
            try:
                open_model(path)
                read += 1
            except (BrokenModelError, UnsupportedModelError) as error:
                messages.add(error.message)
                assert error.message.isprintable() and len(error.message) < 400, mutations
            assert tracemalloc.get_traced_memory()[1] < _PEAK, mutations
    finally:
        tracemalloc.stop()
    assert read > _READ // 4
    assert len(messages) > 30


def test_the_bundled_model_cut_or_flipped_anywhere_in_its_header(bundled_file: Path, tmp_path: Path) -> None:
    """A header of a real model's size; its data is a hole in the file."""
    start = min(info.offset for info in read_gguf(bundled_file).tensors.values())
    with bundled_file.open("rb") as file:
        whole = file.read(start)
    path = tmp_path / "bundled.gguf"
    rng = random.Random(5)
    for _ in range(12):
        path.write_bytes(whole[: rng.randrange(start)])
        with pytest.raises(BrokenModelError):
            open_model(path)
    size, outcomes = bundled_file.stat().st_size, []
    for _ in range(25):
        header = bytearray(whole)
        at = rng.choice([rng.randrange(24), rng.randrange(2000), start - 1 - rng.randrange(15_000)])
        header[at] ^= 1 << rng.randrange(8)
        path.write_bytes(header)
        os.truncate(path, size)
        try:
            open_model(path)
            outcomes.append("read")
        except (BrokenModelError, UnsupportedModelError) as error:
            outcomes.append("refused")
            assert error.message.isprintable() and len(error.message) < 400
    assert {"read", "refused"} == set(outcomes)


def test_spoilt_models_end_no_process_that_uses_them() -> None:
    command = [sys.executable, "-m", "tests.fuzz.fuzzer", "--seed", "1", "--cases", str(_USED), "--json"]
    ran = subprocess.run([*command, "--seconds", "600"], capture_output=True, text=True, check=False)
    assert ran.returncode in (0, 1), ran.stderr
    report = json.loads(ran.stdout.splitlines()[-1])
    assert report["findings"] == []
    assert report["cases"] == _USED
    assert report["endings"]["import refused"] > _USED // 4
    assert report["endings"]["use done"] > 3  # a good part of the spoilt models is sound enough to be used


def test_every_mutation_spoils_something(sound: Image) -> None:
    """A mutation that stopped doing anything would pass unseen."""
    rng = random.Random(3)
    before = sound.built()
    for name, (mutation, _) in MUTATIONS.items():
        changed = 0
        for _ in range(12):
            image = sound.copy()
            mutation(rng, image)
            changed += image.built() != before
        assert changed > 3, name


def test_pieces_of_a_split_model_with_wrong_numbers(tmp_path: Path) -> None:
    write_random_model(tmp_path / "small.gguf", split_max_tensors=20)
    pieces = sorted(tmp_path.glob("small-*.gguf"))
    bodies = [piece.read_bytes() for piece in pieces]
    images = [take_apart(piece) for piece in pieces]
    whole = open_model(pieces[0]).tensors.keys()
    rng = random.Random(6)
    messages = set()
    for _ in range(150):
        for piece, body in zip(pieces, bodies, strict=True):
            piece.write_bytes(body)
        at = rng.randrange(len(pieces))
        how = rng.randrange(4)
        if how == 0:
            pieces[at].unlink()
        elif how == 1:
            pieces[at].write_bytes(rng.choice(bodies))
        else:
            image = images[at].copy()
            (split_keys if how == 2 else other_name)(rng, image)
            pieces[at].write_bytes(image.built())
        try:
            opened = open_model(rng.choice(pieces)).tensors.keys()
            assert how == 3 or opened == whole
        except (BrokenModelError, UnsupportedModelError) as error:
            messages.add(error.message)
            assert error.message.isprintable() and len(error.message) < 400
    assert len(messages) > 10
