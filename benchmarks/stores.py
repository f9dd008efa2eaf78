"""A store with a benchmark's model, cut once and linked into every daemon's home."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from benchmarks.cluster import MODEL
from benchmarks.models import folder
from edged.cli.import_model import import_file
from edged.store.catalogue import Catalogue
from tests.lab.disk import forget


def prepared_store(model: Path) -> Path:
    """A home directory whose store holds `model`, made once and kept as long as it can be read."""
    home = folder() / f"store-{model.stem}"
    done = home / "imported"
    stamp = f"{model.stat().st_size} {model.stat().st_mtime_ns}"
    if not done.exists() or done.read_text() != stamp or not Catalogue(home).models():
        shutil.rmtree(home, ignore_errors=True)
        print(f"cutting {model.name}", file=sys.stderr)
        import_file(home, model, MODEL)
        done.write_text(stamp)
    return home


def parts(home: Path) -> list[Path]:
    return sorted((home / "store" / "parts").iterdir())


def link_store(prepared: Path, home: Path, *, owner: bool) -> None:
    """Gives `home` every part, on the same disk blocks; an owner knows the model too."""
    for place in ("parts", "models") if owner else ("parts",):
        target = home / "store" / place
        target.mkdir(parents=True, exist_ok=True)
        for file in (prepared / "store" / place).iterdir():
            os.link(file, target / file.name)


def forget_store(prepared: Path) -> None:
    """No part is in the page cache: whoever reads it next is charged for it."""
    forget(parts(prepared))
