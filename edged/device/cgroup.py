"""The memory limit that a container or service manager set for this process, cgroup v1 and v2."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

UNLIMITED = 1 << 60  # v1 writes a huge page-rounded number for "no limit"


@dataclass(frozen=True, slots=True)
class CgroupMemory:
    """Bytes: the limit, and what of it is taken by memory that the kernel does not give back on demand.

    The page cache, files read or mapped, is given back; so layers that edged itself reads do not count.
    """

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
            names = ("memory.max", "memory.current", "")
            folder = _folder(mounts["cgroup2"], path)
        elif "memory" in controllers.split(",") and "cgroup" in mounts:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
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


def _read(folder: Path, limit_name: str, usage_name: str, prefix: str) -> CgroupMemory | None:
    """`prefix`: of the names in memory.stat that count descendants too."""
    try:
        limits = [_limit(folder / limit_name)]
        if (folder / "memory.high").is_file():  # above it processes are held up, which is worse than less
            limits.append(_limit(folder / "memory.high"))
        limit = min((limit for limit in limits if limit is not None), default=None)
        if limit is None:
            return None
        usage = int((folder / usage_name).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        cache = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("inactive", "active"))
    except (OSError, ValueError):
        return None
    return CgroupMemory(limit=limit, taken=max(0, usage - cache))


def _limit(path: Path) -> int | None:
    text = path.read_text().strip()
    return None if text == "max" or int(text) >= UNLIMITED else int(text)
