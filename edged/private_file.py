"""Files that nobody else may read: written whole or not at all, 0600 inside a 0700 directory."""

from __future__ import annotations

import os
import shlex
import stat
import tempfile
from pathlib import Path

from edged.errors import SettingsError


def private_directory(path: Path) -> Path:
    """Makes `path` (or narrows what exists) so that only this user can enter it.

    Raises SettingsError where it belongs to somebody else or cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
        if found.st_uid != os.getuid():
            raise SettingsError(f"{path} belongs to another user: choose another --home")
        if found.st_mode & stat.S_IWOTH:  # not one of ours: narrowing /tmp would break the machine
            raise SettingsError(f"everybody can write to {path}: choose another --home")
        if stat.S_IMODE(found.st_mode) != 0o700:
            path.chmod(0o700)
    except OSError as error:
        raise SettingsError(f"cannot use the directory {path}: {error.strerror}") from None
    return path


def home_directory(path: Path) -> Path:
    """Makes the home directory `path`, for this user only; the rights of one that exists stay as they are.

    Raises SettingsError where others could exchange what is in it, or it cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = path.stat().st_mode
    except OSError as error:
        raise SettingsError(f"cannot use the directory {path}: {error.strerror}") from None
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SettingsError(
            f"others can write to {path}: run `chmod go-w {shlex.quote(str(path))}`, or choose another --home"
        )
    return path


def write_private(path: Path, body: bytes) -> None:
    """Replaces `path` in one step; after a crash it holds either the old bytes or the new ones.

    Raises SettingsError where the disk or its rights do not allow it.
    """
    private_directory(path.parent)
    scratch: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp gives 0600
        scratch = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        if scratch is not None:
            scratch.unlink(missing_ok=True)
        raise SettingsError(f"cannot write {path}: {error.strerror}") from None
