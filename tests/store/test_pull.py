"""Pulling from a stand-in hub with the real huggingface_hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.errors import DamagedPartError, DiskFullError, SettingsError, StoreError, UnknownModelError
from edged.store import pull as pull_module
from edged.store.catalogue import Catalogue
from edged.store.manifest import Manifest
from edged.store.pull import RemoteFile, choose, pull_model
from tests.models.random_models import write_random_model
from tests.store.hub import Hub

REPO = "lab/tiny-GGUF"


@pytest.fixture
def hub(small_file: Path) -> Iterator[Hub]:
    data = small_file.read_bytes()
    with Hub({"README.md": b"# tiny", "tiny-Q4_K_M.gguf": data, "tiny-Q8_0.gguf": data[:100]}) as hub:
        yield hub


def names(files: list[str], choice: str) -> list[str]:
    return [one.name for one in choose(REPO, [RemoteFile(name, 1, None) for name in files], choice)]


def test_pull_brings_what_import_would(
    hub: Hub, small_home: tuple[Path, Manifest], tmp_path: Path, untried: None
) -> None:
    catalogue = Catalogue(tmp_path)
    seen: list[tuple[str, int, int]] = []
    manifest = pull_model(
        f"hf:{REPO}", catalogue, report=lambda *step: seen.append(step), endpoint=hub.endpoint
    )
    assert manifest.name == "tiny-Q4_K_M"
    assert manifest.parts == small_home[1].parts
    assert catalogue.models() == (manifest,)
    assert not list((tmp_path / "store" / "downloads").iterdir())
    downloads = [step for step in seen if step[0] == f"downloading {REPO}"]
    size = len(hub.files["tiny-Q4_K_M.gguf"])
    assert downloads[-1][1:] == (size, size)
    assert seen[-1][0] == f"importing {REPO}"
    assert {path for _, path, _ in hub.requests if path.endswith(".gguf")} == {
        path for _, path, _ in hub.requests if path.endswith("tiny-Q4_K_M.gguf")
    }


def test_a_broken_download_goes_on_where_it_stopped(
    hub: Hub, tmp_path: Path, untried: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)
    hub.break_off_after = 300_000
    manifest = pull_model(REPO, Catalogue(tmp_path), endpoint=hub.endpoint)
    ranges = [wanted for method, _, wanted in hub.requests if method == "GET" and wanted]
    assert ranges == ["bytes=300000-"]
    assert manifest.n_layers == 5


def test_a_damaged_download_is_not_imported(hub: Hub, tmp_path: Path) -> None:
    hub.damage = True
    catalogue = Catalogue(tmp_path)
    with pytest.raises(DamagedPartError, match="pull it again"):
        pull_model(REPO, catalogue, endpoint=hub.endpoint)
    assert catalogue.models() == ()
    hub.damage = False
    assert pull_model(REPO, catalogue, endpoint=hub.endpoint).n_layers == 5


def test_a_split_model_comes_with_all_its_files(
    small_home: tuple[Path, Manifest], tmp_path: Path, untried: None
) -> None:
    write_random_model(tmp_path / "big-Q4_K_M.gguf", split_max_tensors=20)
    files = {f"Q4_K_M/{path.name}": path.read_bytes() for path in tmp_path.glob("big-*.gguf")}
    assert len(files) > 1
    with Hub(files) as hub:
        manifest = pull_model(REPO, Catalogue(tmp_path / "home"), endpoint=hub.endpoint)
    assert manifest.name == "big-Q4_K_M"
    assert manifest.parts == small_home[1].parts


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (404, "RepoNotFound", UnknownModelError, "no public repository"),
        (401, "RepoNotFound", UnknownModelError, "no public repository"),
        (403, "GatedRepo", UnknownModelError, "accept its terms"),
        (400, "", StoreError, "status 400"),
    ],
)
def test_what_the_hub_refuses_is_said_in_words(
    hub: Hub, tmp_path: Path, status: int, code: str, kind: type[Exception], words: str
) -> None:
    hub.status, hub.error_code = status, code
    with pytest.raises(kind, match=words) as caught:
        pull_model(REPO, Catalogue(tmp_path), endpoint=hub.endpoint)
    assert len(str(caught.value).splitlines()) == 1


def test_no_network(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be reached"):
        pull_model(REPO, Catalogue(tmp_path), endpoint="http://127.0.0.1:1")


def test_too_little_room(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull_module, "free_bytes", lambda _: 1000)
    with pytest.raises(DiskFullError, match="are needed"):
        pull_model(REPO, Catalogue(tmp_path), endpoint=hub.endpoint)


def test_names_that_name_no_model(tmp_path: Path) -> None:
    for name in ("", "llama", "a/b/c", "../..", "a/b:", "a/b:\n", "hf:"):
        with pytest.raises(SettingsError, match="names no model"):
            pull_model(name, Catalogue(tmp_path))


def test_choice() -> None:
    split = ["m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf"]
    many = ["m-Q4_K_M.gguf", "m-UD-Q4_K_M.gguf", "m-IQ4_XS.gguf", *split, "mmproj-m-F16.gguf", "config.json"]
    assert names(many, "") == ["m-Q4_K_M.gguf"]
    assert names(many, "q8_0") == split
    assert names(many, "m-Q8_0-00002-of-00002.gguf") == split
    assert names(many, "UD-Q4_K_M") == ["m-UD-Q4_K_M.gguf"]
    assert names(many, "m-IQ4_XS.gguf") == ["m-IQ4_XS.gguf"]
    assert names(["only.gguf"], "") == ["only.gguf"]
    assert names(["F16/a-1.gguf", "q5_0/a-1.gguf"], "Q5_0") == ["q5_0/a-1.gguf"]
    with pytest.raises(UnknownModelError, match=r"nothing called 'Q2_K'; .* IQ4_XS, Q4_K_M, Q8_0"):
        names(many, "Q2_K")
    with pytest.raises(UnknownModelError, match=r"several models and no Q4_K_M; .* Q5_0, Q6_K"):
        names(["m-Q5_0.gguf", "m-Q6_K.gguf"], "")
    with pytest.raises(UnknownModelError, match="no GGUF files"):
        names(["model.safetensors", "mmproj-F16.gguf"], "")
