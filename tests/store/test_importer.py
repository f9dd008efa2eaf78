"""Importing: nothing is lost, nothing bad gets in, and a refusal leaves nothing behind."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from edged.errors import (
    BrokenModelError,
    DamagedPartError,
    DiskFullError,
    EdgedError,
    MissingPartError,
    SettingsError,
    StoreError,
    UnsupportedModelError,
)
from edged.store import importer as importer_module
from edged.store.catalogue import Catalogue
from edged.store.compose import compose
from edged.store.gguf_file import PAGE, read_gguf
from edged.store.importer import import_model
from edged.store.manifest import Manifest
from edged.store.model_files import model_name
from edged.store.probe import Trial
from tests.models.architectures import Shape
from tests.models.random_models import write_random_model
from tests.store.composed import materialise


def listing(home: Path) -> set[str]:
    return {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}


def test_every_tensor_and_key_survives(small_file: Path, small: tuple[Catalogue, Manifest]) -> None:
    catalogue, manifest = small
    whole = materialise(compose(manifest, catalogue, 0, manifest.n_layers), catalogue.home / "whole.gguf")
    before, after = gguf.GGUFReader(small_file), gguf.GGUFReader(whole)
    assert {one.name for one in before.tensors} == {one.name for one in after.tensors}
    found = {one.name: one for one in after.tensors}
    for one in before.tensors:
        assert found[one.name].tensor_type == one.tensor_type
        assert np.array_equal(found[one.name].data, one.data)
    fields = {key: field.contents() for key, field in before.fields.items() if not key.startswith("GGUF.")}
    copied = {key: field.contents() for key, field in after.fields.items() if not key.startswith("GGUF.")}
    assert copied == {**fields, "general.alignment": PAGE}


def test_every_part_is_a_gguf_with_tensors_on_pages(small: tuple[Catalogue, Manifest]) -> None:
    catalogue, manifest = small
    for part in manifest.parts:
        path = catalogue.verify(part)
        assert path.stat().st_size == part.size
        assert part.size % PAGE == 0
        assert len(gguf.GGUFReader(path).tensors) == len(part.tensors)
        inside = read_gguf(path)
        assert inside.alignment == PAGE
        for tensor in part.tensors:
            assert tensor.offset % PAGE == 0
            assert inside.tensors[tensor.name].offset == tensor.offset
    names = [part.name for part in manifest.parts]
    assert names == [*(f"layer.{index:03d}" for index in range(5)), "embedding", "output", "shared", "vocab"]


def test_windows_need_what_they_need(small: tuple[Catalogue, Manifest]) -> None:
    _, manifest = small

    def names(first: int, last: int) -> list[str]:
        return [part.name for part in manifest.parts_for(first, last)]

    assert names(0, 2) == ["layer.000", "layer.001", "embedding", "shared"]
    assert names(2, 4) == ["layer.002", "layer.003", "shared"]
    assert names(4, 5) == ["layer.004", "output", "shared"]
    assert set(names(0, 5)) == {part.name for part in manifest.parts}


def test_a_tied_model_needs_its_embedding_at_both_ends(tmp_path: Path, untried: None) -> None:
    path = write_random_model(tmp_path / "tied.gguf", shape=Shape(tied=True))
    catalogue = Catalogue(tmp_path)
    manifest = import_model(path, catalogue)
    assert manifest.tied
    assert {part.name for part in manifest.parts_for(4, 5)} == {"layer.004", "embedding", "output", "shared"}
    last = compose(manifest, catalogue, 4, 5)
    embedding = manifest.by_name["embedding"]
    assert sum(segment.path == catalogue.path(embedding.sha256) for segment in last.segments) == 1


def test_the_same_file_gives_the_same_parts(
    small_file: Path, small_home: tuple[Path, Manifest], tmp_path: Path, untried: None
) -> None:
    assert import_model(small_file, Catalogue(tmp_path)) == small_home[1]


def test_a_split_model_gives_the_same_parts(
    small_home: tuple[Path, Manifest], tmp_path: Path, untried: None
) -> None:
    write_random_model(tmp_path / "small.gguf", split_max_tensors=11)
    pieces = sorted(tmp_path.glob("small-0000*-of-0000*.gguf"))
    assert len(pieces) > 3
    assert import_model(pieces[2], Catalogue(tmp_path)) == small_home[1]


def test_pieces_that_do_not_belong_together(tmp_path: Path, untried: None) -> None:
    write_random_model(tmp_path / "small.gguf", split_max_tensors=20)
    pieces = sorted(tmp_path.glob("small-*.gguf"))
    catalogue = Catalogue(tmp_path)
    bodies = [piece.read_bytes() for piece in pieces]
    pieces[0].write_bytes(bodies[1])
    pieces[1].write_bytes(bodies[0])
    with pytest.raises(BrokenModelError, match="is not piece 1"):
        import_model(pieces[0], catalogue)
    alone = tmp_path / "alone.gguf"
    alone.write_bytes(bodies[0])
    with pytest.raises(BrokenModelError, match="keep them together"):
        import_model(alone, catalogue)
    pieces[0].write_bytes(bodies[0])
    pieces[1].unlink()
    with pytest.raises(BrokenModelError, match=rf"{pieces[1].name} is missing"):
        import_model(pieces[0], catalogue)
    assert listing(tmp_path / "store") == {"lock"}


def test_progress_ends_at_the_total(small_file: Path, tmp_path: Path, untried: None) -> None:
    seen: list[tuple[int, int]] = []
    import_model(small_file, Catalogue(tmp_path), report=lambda done, total: seen.append((done, total)))
    assert len({total for _, total in seen}) == 1
    done, total = seen[-1]
    assert 0.5 * total < done <= total
    assert [one for one, _ in seen] == sorted(one for one, _ in seen)


def test_names(small_file: Path, tmp_path: Path, untried: None) -> None:
    assert model_name(Path("Qwen3-4B-Q4_K_M-00001-of-00003.gguf")) == "Qwen3-4B-Q4_K_M"
    assert model_name(Path("my model (final).gguf")) == "my-model-final"
    assert model_name(Path("....gguf")) == "model"
    catalogue = Catalogue(tmp_path)
    assert import_model(small_file, catalogue, name="lab/small:v1").name == "lab/small:v1"
    with pytest.raises(SettingsError, match="cannot be a model's name"):
        import_model(small_file, catalogue, name="../../etc/passwd\n")


def test_a_name_is_taken_over_only_when_asked(small_file: Path, tmp_path: Path, untried: None) -> None:
    catalogue = Catalogue(tmp_path)
    first = import_model(small_file, catalogue)
    assert import_model(small_file, catalogue) == first
    (tmp_path / "new").mkdir()
    other_file = write_random_model(tmp_path / "new" / "small.gguf", seed=7)
    before = listing(tmp_path / "store")
    with pytest.raises(StoreError, match="there is another model called small"):
        import_model(other_file, catalogue)
    assert listing(tmp_path / "store") == before
    second = import_model(other_file, catalogue, replace=True)
    assert catalogue.models() == (second,)
    assert not catalogue.missing(second.parts)
    assert len(listing(tmp_path / "store" / "parts")) == len(second.parts)


def refused(path: Path, home: Path, kind: type[EdgedError], words: str) -> None:
    catalogue = Catalogue(home)
    before = listing(home / "store")
    with pytest.raises(kind, match=words) as caught:
        import_model(path, catalogue)
    assert len(caught.value.message.splitlines()) == 1
    assert listing(home / "store") == before


def test_an_unknown_architecture(small_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "future.gguf"
    value = struct.pack("<Q", 5)
    data = small_file.read_bytes().replace(b"llama.", b"lxyzq.")
    path.write_bytes(data.replace(value + b"llama", value + b"lxyzq", 1))
    assert read_gguf(path).get("general.architecture") == "lxyzq"
    refused(path, tmp_path, UnsupportedModelError, "unknown model architecture: 'lxyzq'")


def test_what_aborts_llama_cpp_does_not_abort_us(tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "hostile.gguf", hyperparameters={"expert_count": 100_000})
    refused(
        path,
        tmp_path,
        BrokenModelError,
        r"hostile\.gguf was refused: llama\.cpp ended with SIGABRT on it \([^/ ]+:\d+: ",
    )


def test_what_llama_cpp_refuses_is_refused_in_its_words(tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "odd.gguf", hyperparameters={"feed_forward_length": 95})
    refused(path, tmp_path, BrokenModelError, "wrong shape")


@pytest.mark.parametrize("name", ["context_length", "embedding_length", "block_count"])
def test_absurd_hyperparameters(
    name: str, tmp_path: Path, untried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours are checked even where llama.cpp would let them pass."""
    monkeypatch.setattr("edged.store.probe.try_file", lambda _: Trial(n_vocab=288, recurrent=False))
    path = write_random_model(tmp_path / "odd.gguf", hyperparameters={name: 0})
    refused(path, tmp_path, BrokenModelError, name if name != "block_count" else "0 layers")


def test_a_model_that_computes_no_numbers(tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "nan.gguf")
    data = bytearray(path.read_bytes())
    norm = read_gguf(path).tensors["output_norm.weight"]
    data[norm.offset : norm.offset + norm.nbytes] = np.full(norm.nbytes // 4, np.nan, np.float32).tobytes()
    path.write_bytes(data)
    refused(path, tmp_path, BrokenModelError, "are not numbers")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"<0xFF>", b"<0xZZ>", r"odd.*: the vocabulary has no token for the byte 0xFF"),
        (b"<0xFF>", b"<0xFE>", r"odd.*: the token '<0xFE>' is in the vocabulary twice"),
    ],
)
def test_a_vocabulary_that_could_not_be_used_later(
    small_file: Path, tmp_path: Path, old: bytes, new: bytes, words: str
) -> None:
    path = tmp_path / "odd.gguf"
    data = small_file.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    refused(path, tmp_path, BrokenModelError, words)


def test_other_things_that_are_gguf(tmp_path: Path) -> None:
    for kind, words in (("adapter", "LoRA"), ("mmproj", "image projector")):
        writer = gguf.GGUFWriter(tmp_path / "other.gguf", "llama")
        writer.add_type(kind)
        writer.add_tensor("t", np.zeros(4, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        refused(tmp_path / "other.gguf", tmp_path, UnsupportedModelError, words)
    (tmp_path / "text.gguf").write_text("hello")
    refused(tmp_path / "text.gguf", tmp_path, BrokenModelError, "does not begin with GGUF")


def test_flipped_bytes_in_the_header_never_get_past_as_something_else(
    small_file: Path, tmp_path: Path
) -> None:
    whole = small_file.read_bytes()
    rng = random.Random(4)
    outcomes = []
    for number in range(4):
        data = bytearray(whole)
        data[rng.randrange(900)] ^= 1 << rng.randrange(8)  # magic, counts and hyperparameters
        path = tmp_path / f"flipped-{number}.gguf"
        path.write_bytes(data)
        try:
            import_model(path, Catalogue(tmp_path))
            outcomes.append("taken")
        except EdgedError as error:
            outcomes.append(error.code)
            assert len(error.message.splitlines()) == 1
    assert set(outcomes) <= {"taken", "broken_model", "unsupported_model"}
    assert "broken_model" in outcomes


def test_stopped_in_the_middle_it_leaves_nothing(small_file: Path, tmp_path: Path, untried: None) -> None:
    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_model(small_file, Catalogue(tmp_path), report=stop)
    assert listing(tmp_path / "store") == {"lock"}


def test_too_little_room_is_seen_before_writing(
    small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer_module, "free_bytes", lambda _: 10_000)
    refused(small_file, tmp_path, DiskFullError, "are needed")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not let root mount")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.root
def test_a_disk_that_fills_up(
    small_file: Path, tiny_disk: Path, monkeypatch: pytest.MonkeyPatch, untried: None
) -> None:
    refused(small_file, tiny_disk, DiskFullError, "is full: .* are needed and .* free")
    # Somebody else takes the room after we have looked.
    monkeypatch.setattr(importer_module, "free_bytes", lambda _: 2**40)
    refused(small_file, tiny_disk, DiskFullError, "is full: .* are needed and .* free")


def test_two_processes_import_the_same_model_at_once(
    small_file: Path, small_home: tuple[Path, Manifest], tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from edged.store.catalogue import Catalogue;"
        "from edged.store.importer import import_model;"
        "print(import_model(Path(sys.argv[1]), Catalogue(Path(sys.argv[2]))).id)"
    )
    command = [sys.executable, "-c", code, str(small_file), str(tmp_path)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [child.communicate()[0].strip() for child in children]
    manifest = small_home[1]
    assert answers == [manifest.id, manifest.id]
    catalogue = Catalogue(tmp_path)
    assert catalogue.models() == (manifest,)
    for part in manifest.parts:
        catalogue.verify(part)
    assert not list(catalogue.scratch.iterdir())


def test_a_part_dropped_by_another_during_the_import_is_written_again(
    small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = Catalogue(tmp_path)

    def drop_some(manifest: Manifest, _: Catalogue) -> None:
        for name in ("layer.001", "vocab"):
            catalogue.path(manifest.by_name[name].sha256).unlink()

    monkeypatch.setattr("edged.store.probe.try_windows", drop_some)
    manifest = import_model(small_file, catalogue)
    assert not catalogue.missing(manifest.parts)


def test_composing_refuses_what_cannot_be(small: tuple[Catalogue, Manifest]) -> None:
    catalogue, manifest = small
    for first, last in ((0, 6), (-1, 2), (3, 3), (4, 2)):
        with pytest.raises(UnsupportedModelError, match="there is no window"):
            compose(manifest, catalogue, first, last)
    whole_only = manifest.model_copy(update={"boundaries": (), "whole_because": "it is a test"})
    with pytest.raises(UnsupportedModelError, match="cannot be cut at layer 2: it is a test"):
        compose(whole_only, catalogue, 0, 2)
    catalogue.path(manifest.layer(1).sha256).unlink()
    with pytest.raises(MissingPartError):
        compose(manifest, catalogue, 0, 2)
    assert [tap.name for tap in compose(manifest, catalogue, 2, 4).captures] == ["l_out-1"]


def test_a_damaged_part_is_found_and_removed(small: tuple[Catalogue, Manifest]) -> None:
    catalogue, manifest = small
    part = manifest.layer(2)
    path = catalogue.verify(part)
    data = bytearray(path.read_bytes())
    data[-5000] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedPartError, match=r"layer\.002"):
        catalogue.verify(part)
    assert not catalogue.has(part.sha256)
