"""Control groups: made by name where a controller is, version 2 before 1, and gone with what runs in them."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.lab.shell import LabError, LabUnavailableError

CONTROLLERS = {"memory": ("memory", "memory"), "disk": ("io", "blkio")}  # names in versions 2 and 1
REMOVE_TRIES = 50


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A mount in which groups with some controller can be made."""

    version: int
    root: Path

    def make(self, name: str, controller: str) -> Path:
        """A group; in version 2 all controllers of one name share it. Raises OSError."""
        if self.version == 2:
            (self.root / "cgroup.subtree_control").write_text(f"+{controller}")
        path = self.root / name
        path.mkdir(exist_ok=self.version == 2)
        return path


def find(kind: str, mounts: Path = Path("/proc/self/mounts")) -> Hierarchy | None:
    """Where groups for `kind` ("memory" or "disk") can be made."""
    unified, legacy = CONTROLLERS[kind]
    found = None
    for line in mounts.read_text().splitlines():
        _, target, fstype, options, *_ = line.split()
        root = Path(target)
        if fstype == "cgroup2" and unified in (root / "cgroup.controllers").read_text().split():
            return Hierarchy(2, root)
        if fstype == "cgroup" and legacy in options.split(","):
            found = Hierarchy(1, root)
    return found


def required(kind: str) -> Hierarchy:
    hierarchy = find(kind)
    if hierarchy is None:
        raise LabUnavailableError(f"this machine has no cgroup for {kind}, neither version 1 nor 2")
    return hierarchy


def roots() -> set[Path]:
    """Mounts in which this library may have made groups."""
    return {found.root for kind in CONTROLLERS if (found := find(kind)) is not None}


def prefix_into(group: Path) -> tuple[str, ...]:
    """What goes before a command so that it begins inside `group`."""
    return ("sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs"))


def members(group: Path) -> list[int]:
    """Process ids inside."""
    return [int(pid) for pid in (group / "cgroup.procs").read_text().split()]


def keyed(file: Path) -> dict[str, int]:
    """A file of lines `name number`."""
    pairs = (line.split() for line in file.read_text().splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


def remove_group(path: Path) -> None:
    """Kills what is left inside and removes the group, which the kernel allows a moment later."""
    if not path.exists():
        return
    inside = []
    for pid in members(path):
        try:
            process = psutil.Process(pid)
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
