"""Which model the cluster ran last, so that it comes back when the founder is started again."""

from __future__ import annotations

import logging
from pathlib import Path

from edged.errors import EdgedError
from edged.private_file import write_private
from edged.store.manifest import Manifest

log = logging.getLogger(__name__)


class LastModel:
    """One file, HOME/run/model, that holds a Manifest.id."""

    def __init__(self, home: Path) -> None:
        self._path = home / "run" / "model"

    def read(self) -> str | None:
        try:
            return self._path.read_text("ascii").strip() or None
        except (OSError, UnicodeDecodeError):
            return None

    def keep(self, manifest: Manifest) -> None:
        """A disk that refuses is logged, not raised: it is only a convenience."""
        if self.read() == manifest.id:
            return
        try:
            write_private(self._path, manifest.id.encode())
        except EdgedError as error:
            log.warning("the model in use could not be noted: %s", error.message)
