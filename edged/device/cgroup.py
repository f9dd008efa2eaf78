"""The memory limit that a container or service manager set for this process, cgroup v1 and v2."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

UNLIMITED = 1 << 60  # v1 writes a huge page-rounded number for "no limit"


@dataclass(frozen=True, slots=True)
class CgroupMemory:
    """Bytes: the limit, and what of it is taken by memory that cannot be given back at once."""

    limit: int
    taken: int

    @property
    def available(self) -> int:
        return max(0, self.limit - self.taken)


def tightest_limit(proc: Path = Path("/proc/self")) -> CgroupMemory | None:
    """The limit that leaves least among this process's cgroup and its parents; None where there is none."""
    try:
        limits = list(_limits(proc))
    except OSError:
        return None
    return min(limits, key=lambda memory: memory.available, default=None)


def _limits(proc: Path) -> Iterator[CgroupMemory]:
    mounts = {kind: (root, mount) for kind, root, mount in _mounts((proc / "mountinfo").read_text())}
    for line in (proc / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" and "cgroup2" in mounts:
            names = ("memory.max", "memory.current", "inactive_file")
            folder = _folder(mounts["cgroup2"], path)
        elif "memory" in controllers.split(",") and "cgroup" in mounts:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            folder = _folder(mounts["cgroup"], path)
        else:
            continue
        top = mounts["cgroup2" if controllers == "" else "cgroup"][1]
        for place in (folder, *folder.parents):
            if (memory := _read(place, *names)) is not None:
                yield memory
            if place == top:
                break


def _mounts(mountinfo: str) -> Iterator[tuple[str, str, Path]]:
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        root, mount = left.split()[3:5]
        kind, _, options = right.split(maxsplit=2)
        if kind == "cgroup2" or (kind == "cgroup" and "memory" in options.split(",")):
            yield kind, root, Path(mount)


def _folder(mount: tuple[str, Path], path: str) -> Path:
    """Where the cgroup `path` is in the file system; a container sees only its own part mounted."""
    root, top = mount
    inner = path[len(root) :] if root != "/" and path.startswith(root) else path
    folder = top / inner.lstrip("/")
    return folder if folder.is_dir() else top


def _read(folder: Path, limit_name: str, usage_name: str, reclaimable: str) -> CgroupMemory | None:
    try:
        text = (folder / limit_name).read_text().strip()
        if text == "max" or int(text) >= UNLIMITED:
            return None
        usage = int((folder / usage_name).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return CgroupMemory(limit=int(text), taken=max(0, usage - int(stat.get(reclaimable, 0))))
