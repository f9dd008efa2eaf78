"""Writing one file of the store: to a temporary name, hashed on the way, and renamed when it is whole."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from edged.errors import DiskFullError, StoreError

BLOCK = 4 * 2**20  # copied at a time


def readable_size(count: int) -> str:
    """Bytes for a person: `1.4 GB`."""
    if count < 1000:
        return f"{count} bytes"
    size, units = count / 1000, ["kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.1f} {units[0]}"


@contextlib.contextmanager
def disk_errors(directory: Path, wanted: int) -> Iterator[None]:
    """Turn the system's errors of writing `wanted` bytes below `directory` into one clear line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(directory, wanted) from None
        raise StoreError(f"cannot write in {directory}: {error.strerror or error}") from None


def disk_full(directory: Path, wanted: int) -> DiskFullError:
    free = free_bytes(directory)
    return DiskFullError(
        f"the disk of {directory} is full: {readable_size(wanted)} are needed and {readable_size(free)} are "
        "free; make room or choose another --home"
    )


def free_bytes(directory: Path) -> int:
    """Free bytes of the disk that `directory` is or would be on."""
    while not directory.exists():
        directory = directory.parent
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


class PartFile:
    """A file being written below `scratch`; `finish` gives its hash, `close` removes it unless kept.

    Its lock says that its writer lives: a scratch file that can be locked is left over and may go.
    """

    def __init__(self, scratch: Path) -> None:
        self.path = scratch / f"{os.getpid()}-{secrets.token_hex(8)}.writing"
        self._file: BinaryIO | None = self.path.open("xb", buffering=0)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        assert self._file is not None
        view = memoryview(data)
        self._hash.update(view)
        self.size += len(view)
        while view:
            view = view[self._file.write(view) :]

    def write_zeros(self, count: int) -> None:
        while count > 0:
            step = min(count, BLOCK)
            self.write(bytes(step))
            count -= step

    def finish(self) -> str:
        """Make the bytes durable; the SHA-256 of all that was written."""
        assert self._file is not None
        os.fsync(self._file.fileno())
        return self._hash.hexdigest()

    def move_to(self, target: Path) -> None:
        """Put the finished file in its place, at once and for good."""
        self.path.replace(target)
        sync_directory(target.parent)

    def close(self) -> None:
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def __enter__(self) -> PartFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def clean_scratch(scratch: Path) -> None:
    """Remove what dead writers left. Call it with the store locked, as `PartFile` is made with it locked."""
    for path in scratch.glob("*.writing"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
