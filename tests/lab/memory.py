"""A memory limit as a container would have it: a cgroup of version 2 where it has memory, else version 1."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import psutil

from tests.lab.shell import LabError, LabUnavailableError

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
REMOVE_TRIES = 50


def parse_size(text: str) -> int:
    """`64M` -> bytes; units are powers of 1024."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise LabError(f"{text!r} is not a size such as 512M or 2G")
    return int(float(match[1]) * UNITS[match[2].upper()])


def _mounts(kind: str) -> list[tuple[Path, set[str]]]:
    found = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, target, fstype, options, *_ = line.split()
        if fstype == kind:
            found.append((Path(target), set(options.split(","))))
    return found


def _v2_root() -> Path | None:
    for root, _ in _mounts("cgroup2"):
        if "memory" in (root / "cgroup.controllers").read_text().split():
            return root
    return None


def _v1_root() -> Path | None:
    return next((root for root, options in _mounts("cgroup") if "memory" in options), None)


def roots() -> list[Path]:
    """Mounts in which this library may have made groups."""
    return [root for root in (_v2_root(), _v1_root()) if root is not None]


class MemoryGroup:
    """A cgroup that limits the processes started through `prefix`."""

    def __init__(self, name: str, limit: int) -> None:
        self.limit = limit
        try:
            self._make(name)
        except OSError as error:
            raise LabUnavailableError(f"no memory cgroup can be made here: {error}") from None

    def _make(self, name: str) -> None:
        v2 = _v2_root()
        if v2 is not None:
            self.version = 2
            (v2 / "cgroup.subtree_control").write_text("+memory")
            self.path = v2 / name
            self.path.mkdir()
            (self.path / "memory.max").write_text(str(self.limit))
            self._optional("memory.swap.max", "0")
            return
        v1 = _v1_root()
        if v1 is None:
            raise LabUnavailableError("this machine has no memory cgroup, neither version 1 nor 2")
        self.version = 1
        self.path = v1 / name
        self.path.mkdir()
        (self.path / "memory.limit_in_bytes").write_text(str(self.limit))
        self._optional("memory.memsw.limit_in_bytes", str(self.limit))  # no swap beyond it

    def _optional(self, file: str, value: str) -> None:
        if (self.path / file).exists():
            (self.path / file).write_text(value)

    @property
    def prefix(self) -> tuple[str, ...]:
        """What goes before a command so that it begins inside the group."""
        return ("sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.path / "cgroup.procs"))

    @property
    def peak(self) -> int:
        """The most bytes the group has held, page cache included."""
        name = "memory.peak" if self.version == 2 else "memory.max_usage_in_bytes"
        return int((self.path / name).read_text())

    def close(self) -> None:
        remove_group(self.path)


def remove_group(path: Path) -> None:
    """Kills what is left inside and removes the group, which the kernel allows a moment later."""
    if not path.exists():
        return
    inside = []
    for pid in (path / "cgroup.procs").read_text().split():
        try:
            process = psutil.Process(int(pid))
            process.kill()
            inside.append(process)
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(inside, timeout=10)
    pause = threading.Event()
    for _ in range(REMOVE_TRIES):
        try:
            path.rmdir()
            return
        except OSError:
            pause.wait(0.1)
    raise LabError(f"{path} still has processes")
