"""One process that computes, for all models: an abort inside llama.cpp then fails one test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edged.verify.check import Wishes, verify_in
from edged.verify.report import Report
from edged.verify.session import Session

Verify = Callable[..., Report]


@pytest.fixture(scope="session")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    with Session(tmp_path_factory.mktemp("verify") / "printed") as session:
        yield session


@pytest.fixture
def verify(session: Session, tmp_path: Path) -> Verify:
    """Verifies a model file, with the wishes given, on one thread."""

    def run(path: Path, **wishes: object) -> Report:
        scratch = tmp_path / "scratch"
        scratch.mkdir(exist_ok=True)
        asked = Wishes(n_threads=1, **wishes)  # type: ignore[arg-type]
        return verify_in(session, scratch, str(path), tmp_path, asked, lambda *_: None)

    return run
