"""One writer at a time in a store, among threads and among processes."""

from __future__ import annotations

import fcntl
import threading
from pathlib import Path
from typing import BinaryIO


class StoreLock:
    """A re-entrant lock on a file; the system releases it when its holder dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._threads = threading.RLock()
        self._depth = 0
        self._file: BinaryIO | None = None

    def __enter__(self) -> StoreLock:
        self._threads.acquire()
        try:
            if self._depth == 0:
                file = self._path.open("ab")
                fcntl.flock(file, fcntl.LOCK_EX)
                self._file = file
            self._depth += 1
        except BaseException:
            self._threads.release()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._depth -= 1
        if self._depth == 0 and self._file is not None:
            self._file.close()
            self._file = None
        self._threads.release()
