"""`edged verify`: what it prints, its exit codes, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.cli.conftest import Outcome
from tests.models.architectures import Shape
from tests.models.random_models import write_random_model

Edged = Callable[..., Outcome]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_random_model(tmp_path / "tiny.gguf", shape=Shape(n_layers=4, n_heads=2))


def test_for_people(edged: Edged, model: Path) -> None:
    done = edged("verify", str(model), "--windows", "2,9", "--tokens", "8")
    assert done.code == 0
    assert done.out.splitlines() == [
        "tiny: llama, 4 layers; 8 tokens, f16 cache, flash attention off",
        "cut before 2: exact",
        "in 9 windows: refused, it has 4 layers only",
    ]
    assert any(line.startswith("the whole model: ") for line in done.err.splitlines())


def test_for_programs(edged: Edged, model: Path) -> None:
    done = edged("verify", str(model), "--json", "--kv-type", "q8_0")
    assert done.code == 0
    found = json.loads(done.out)
    assert (found["exact"], found["architecture"], found["flash_attention"]) == (True, "llama", "on")
    assert found["cuts"] == [
        {"boundaries": boundaries, "exact": True, "max_abs_diff": 0.0}
        for boundaries in ([2], [1, 3], [1, 2, 3])
    ]


def test_a_model_that_is_none(edged: Edged, tmp_path: Path) -> None:
    path = tmp_path / "none.gguf"
    path.write_bytes(b"GGUF but nothing else")
    done = edged("verify", str(path), "--json")
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert line.startswith("edged: none.gguf")
    found = json.loads(done.out)
    assert (found["exact"], found["architecture"], found["cuts"]) == (False, "", [])
    assert line == f"edged: {found['reason']}"


def test_a_model_that_llama_cpp_does_not_run(edged: Edged, tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "alien.gguf")
    path.write_bytes(path.read_bytes().replace(b"llama", b"lllma"))
    done = edged("verify", str(path), "--json")
    found = json.loads(done.out)
    assert (done.code, found["architecture"]) == (1, "lllma")
    assert "unknown model architecture" in found["reason"]


@pytest.mark.parametrize("windows", ["0", "2,x", "", "-1"])
def test_numbers_of_windows_that_make_no_sense(edged: Edged, model: Path, windows: str) -> None:
    assert edged("verify", str(model), f"--windows={windows}").code == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ended_in_the_middle_it_leaves_nothing(
    model: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "edged", "verify", str(model), "--tokens", "4096", "--threads", "1"]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch)},
        start_new_session=True,
    ) as running:
        assert running.stderr is not None
        assert running.stderr.readline().startswith("the whole model: ")
        children = psutil.Process(running.pid).children(recursive=True)
        assert children
        assert list(scratch.iterdir())
        # The terminal sends it to all
        os.killpg(running.pid, number) if number == signal.SIGINT else running.send_signal(number)
        out, err = running.communicate(timeout=60)
    assert running.returncode == code
    assert out == ""
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
    assert list(scratch.iterdir()) == []
