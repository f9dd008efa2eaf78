"""The store on disk: names, shared parts, and what dead processes leave."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from edged.cluster.known_models import KnownModels
from edged.errors import DiskFullError, MissingPartError, StoreError, UnknownModelError
from edged.store.catalogue import Catalogue
from edged.store.importer import import_model
from edged.store.manifest import Manifest


def renamed(manifest: Manifest, name: str, **changes: object) -> Manifest:
    return Manifest.model_validate({**manifest.model_dump(), "name": name, **changes})


def test_models_are_found_by_name_beginning_and_id(small: tuple[Catalogue, Manifest]) -> None:
    catalogue, manifest = small
    other = renamed(manifest, "smaller")
    assert catalogue.find("SMA") == manifest
    catalogue.add(other)
    assert catalogue.find("small") == manifest
    assert catalogue.find("smalle") == other
    assert catalogue.find(other.id[:10]) == other
    assert catalogue.get(other.id) == other
    assert catalogue.get("../x") is None and catalogue.get("0" * 64) is None
    with pytest.raises(UnknownModelError, match="several models begin with 'sm': small, smaller"):
        catalogue.find("sm")
    with pytest.raises(UnknownModelError, match="no model 'big'; there is: small, smaller"):
        catalogue.find("big")
    with pytest.raises(UnknownModelError):
        catalogue.find("")


def test_an_empty_store_says_how_to_fill_it(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match="edged import"):
        Catalogue(tmp_path).find("anything")


def test_removing_keeps_what_another_model_shares(small: tuple[Catalogue, Manifest]) -> None:
    catalogue, manifest = small
    kept = [part for part in manifest.parts if part.name in ("layer.000", "embedding", "vocab")]
    sharing = renamed(
        manifest, "sharing", n_layers=1, boundaries=(), parts=[part.model_dump() for part in kept]
    )
    catalogue.add(sharing)
    freed = catalogue.remove("small")
    assert freed == sum(part.size for part in manifest.parts if part not in kept)
    assert not catalogue.missing(kept)
    assert len(catalogue.missing(manifest.parts)) == len(manifest.parts) - len(kept)
    assert catalogue.models() == (sharing,)
    assert catalogue.remove("sharing") == sum(part.size for part in kept)
    assert catalogue.models() == ()


def test_what_is_stored_follows_the_parts(small: tuple[Catalogue, Manifest], tmp_path: Path) -> None:
    catalogue, manifest = small
    assert catalogue.stored() == catalogue.held(manifest) == sum(part.size for part in manifest.parts)
    mine = manifest.parts_for(2, 4)
    Catalogue(tmp_path).keep_only(manifest, mine)  # as another process does
    assert catalogue.stored() == sum(part.size for part in mine)
    catalogue.remove(manifest.name)
    assert catalogue.stored() == 0


def test_images_go_with_their_layers(small: tuple[Catalogue, Manifest]) -> None:
    catalogue, manifest = small
    images = [
        catalogue.images / f"{manifest.layer(index).sha256}-{kind}.image" for index, kind in [(0, 1), (2, 1)]
    ]
    for image in images:
        image.write_bytes(bytes(1000))
    mine = manifest.parts_for(2, 4)
    others = sum(part.size for part in manifest.parts if part not in mine)
    assert catalogue.keep_only(manifest, mine) == others + 1000
    assert [image.exists() for image in images] == [False, True]
    assert catalogue.remove("small") == sum(part.size for part in mine) + 1000
    assert list(catalogue.images.iterdir()) == []


def test_a_worker_keeps_only_what_it_runs(small: tuple[Catalogue, Manifest]) -> None:
    catalogue, manifest = small
    mine = manifest.parts_for(2, 4)
    catalogue.keep_only(manifest, mine)
    assert catalogue.held(manifest) == sum(part.size for part in mine)
    assert catalogue.find("small") == manifest
    with pytest.raises(MissingPartError):
        catalogue.path(manifest.layer(0).sha256)


def test_another_process_sees_changes(small: tuple[Catalogue, Manifest]) -> None:
    catalogue, manifest = small
    code = "import sys; from pathlib import Path; from edged.store.catalogue import Catalogue;"
    code += "Catalogue(Path(sys.argv[1])).remove('small')"
    assert catalogue.created(manifest) > 0
    subprocess.run([sys.executable, "-c", code, str(catalogue.home)], check=True)
    assert catalogue.models() == ()
    assert catalogue.created(manifest) == 0


def test_leftovers_of_the_dead_go_and_of_the_living_stay(small: tuple[Catalogue, Manifest]) -> None:
    catalogue, manifest = small
    code = (
        "import sys, os; from pathlib import Path; from edged.store.catalogue import Catalogue;"
        "file = Catalogue(Path(sys.argv[1])).new_part(); file.write(b'half');"
        "print(file.path.name, flush=True); os._exit(1)"
    )
    command = [sys.executable, "-c", code, str(catalogue.home)]
    dead = subprocess.run(command, capture_output=True, text=True, check=False)
    left = catalogue.scratch / dead.stdout.strip()
    assert left.is_file()
    wanted = catalogue.partial_path(manifest.layer(0).sha256)
    unwanted = catalogue.partial_path("0" * 64)
    wanted.write_bytes(b"half")
    unwanted.write_bytes(b"half")
    with catalogue.new_part() as living:
        Catalogue(catalogue.home)
        assert living.path.is_file()
    assert not left.exists() and not unwanted.exists()
    assert wanted.exists()
    catalogue.remove("small")
    assert not wanted.exists()


def test_a_broken_manifest_is_passed_over(
    small: tuple[Catalogue, Manifest], caplog: pytest.LogCaptureFixture
) -> None:
    catalogue, manifest = small
    models = catalogue.home / "store" / "models"
    (models / f"{'1' * 64}.manifest").write_bytes(b"\xc1 nonsense")
    (models / f"{'2' * 64}.manifest").write_bytes(manifest.pack())
    with caplog.at_level("INFO"):
        assert catalogue.models() == (manifest,)
    assert "ignoring the unreadable manifest" in caplog.text


def test_verifying_is_done_once_until_the_file_changes(
    small: tuple[Catalogue, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    catalogue, manifest = small
    part = manifest.layer(0)
    hashed = []
    real = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: hashed.append(kind) or real(file, kind))
    path = catalogue.verify(part)
    catalogue.verify(part)
    assert len(hashed) == 1
    path.write_bytes(path.read_bytes())
    catalogue.verify(part)
    assert len(hashed) == 2


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write in"):
        Catalogue(tmp_path / "file")


def test_incomplete_manifests_are_refused(small: tuple[Catalogue, Manifest]) -> None:
    _, manifest = small
    without = [part.model_dump() for part in manifest.parts if part.name != "layer.003"]
    with pytest.raises(ValidationError, match=r"layer\.003 is missing"):
        renamed(manifest, "x", parts=without)
    with pytest.raises(ValidationError, match="named twice"):
        renamed(manifest, "x", parts=[*(part.model_dump() for part in manifest.parts), without[0]])
    with pytest.raises(ValidationError, match="ascending"):
        renamed(manifest, "x", boundaries=(2, 1))
    with pytest.raises(ValidationError, match="ascending"):
        renamed(manifest, "x", boundaries=(5,))


def test_what_is_there_is_not_written_again(
    small: tuple[Catalogue, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk must not keep a model from being loaded that is all there."""
    catalogue, manifest = small

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("edged.store.catalogue.PartFile", full)
    catalogue.add(manifest)
    catalogue.add(manifest, own=True)
    with pytest.raises(DiskFullError):
        catalogue.add(renamed(manifest, "other"))


def test_a_damaged_manifest_is_named_and_importing_repairs_it(
    small: tuple[Catalogue, Manifest], small_file: Path, untried: None
) -> None:
    catalogue, manifest = small
    path = catalogue.home / "store" / "models" / f"{manifest.id}.manifest"
    assert catalogue.damaged() == ()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UnknownModelError, match=rf"{path} is damaged: import the model again"):
        catalogue.find("small")
    with pytest.raises(UnknownModelError, match="is damaged: import the model again"):
        KnownModels(catalogue, None).only()  # type: ignore[arg-type]
    with pytest.raises(UnknownModelError, match="is damaged: import the model again"):
        KnownModels(catalogue, None).find("small")  # type: ignore[arg-type]
    import_model(small_file, catalogue)
    assert catalogue.damaged() == ()
    assert catalogue.find("small") == manifest


def test_importing_again_replaces_damaged_parts(
    small: tuple[Catalogue, Manifest], small_file: Path, untried: None
) -> None:
    catalogue, manifest = small
    damaged, gone = manifest.layer(1), manifest.layer(2)
    path = catalogue.path(damaged.sha256)
    path.write_bytes(bytes(damaged.size))
    catalogue.path(gone.sha256).unlink()
    import_model(small_file, catalogue)
    assert catalogue.verify(damaged) == path
    assert not catalogue.missing(manifest.parts)
