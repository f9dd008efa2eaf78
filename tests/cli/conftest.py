from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edged.cli.main import main
from tests.cli.door import Door, open_door


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def no_edged_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if variable.startswith("EDGED_"):
            monkeypatch.delenv(variable)


@pytest.fixture
def home() -> Iterator[Path]:
    """A short path: a socket's name has room for about a hundred bytes."""
    with tempfile.TemporaryDirectory(prefix="edged-test-") as made:
        yield Path(made)


@pytest.fixture
def door(home: Path) -> Iterator[Door]:
    with open_door(home) as opened:
        yield opened


@pytest.fixture
def edged(home: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs the command line in this process, in `home`."""

    def run(*words: str) -> Outcome:
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main(["--home", str(home), *words])
        assert isinstance(left.value.code, int)
        captured = capfd.readouterr()
        return Outcome(left.value.code, captured.out, captured.err)

    return run
