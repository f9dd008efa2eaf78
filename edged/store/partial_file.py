"""A part that is being fetched: what has arrived is kept, over restarts too, until it is whole."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO, Self

from edged.store.manifest import Part
from edged.store.part_file import BLOCK

SUFFIX = ".partial"


class PartialFile:
    """The partial file of one part, held by this process alone."""

    def __init__(self, path: Path, part: Part, file: BinaryIO) -> None:
        self.path = path
        self._part = part
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0
        self._resume()

    @classmethod
    def claim(cls, scratch: Path, part: Part) -> PartialFile | None:
        """The part's partial file, made if need be; None while another process or thread fetches it."""
        path = scratch / f"{part.sha256}{SUFFIX}"
        file = open(path, "a+b", buffering=0)  # noqa: SIM115, PTH123 - unbuffered binary; closed by `close`
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _same(path, file):  # the one who held it has just finished and moved it away
                raise BlockingIOError
            return cls(path, part, file)
        except BlockingIOError:
            file.close()
            return None
        except BaseException:
            file.close()
            raise

    def write(self, data: bytes) -> None:
        """Append; the caller has seen to it that the part's size is not exceeded."""
        view = memoryview(data)
        self._hash.update(view)
        self.size += len(view)
        while view:
            view = view[self._file.write(view) :]

    def is_right(self) -> bool:
        """Whether all has arrived and has the part's hash; then it is durable, too."""
        if self.size != self._part.size or self._hash.hexdigest() != self._part.sha256:
            return False
        os.fsync(self._file.fileno())
        return True

    def discard(self) -> None:
        """Begin anew."""
        self._file.truncate(0)
        self._hash = hashlib.sha256()
        self.size = 0

    def close(self) -> None:
        """Let go of the file, which stays unless it is empty."""
        if self.size == 0 and _same(self.path, self._file):
            self.path.unlink(missing_ok=True)
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _resume(self) -> None:
        """Hash what an earlier attempt has left."""
        self._file.seek(0)
        while block := self._file.read(BLOCK):
            self._hash.update(block)
            self.size += len(block)
        if self.size > self._part.size:
            self.discard()


def _same(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def drop_partial_files(scratch: Path, but: Collection[str]) -> None:
    """Remove partial files that nobody fetches now, save those of the parts in `but` (by SHA-256)."""
    for path in scratch.glob(f"*{SUFFIX}"):
        if path.name.removesuffix(SUFFIX) not in but:
            with contextlib.suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
