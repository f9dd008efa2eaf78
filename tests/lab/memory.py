"""A memory limit as a container would have it, page cache included, and what the kernel counts under it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.lab.cgroup import Hierarchy, keyed, prefix_into, remove_group, required
from tests.lab.shell import LabError, LabUnavailableError

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_size(text: str) -> int:
    """`64M` -> bytes; units are powers of 1024."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise LabError(f"{text!r} is not a size such as 512M or 2G")
    return int(float(match[1]) * UNITS[match[2].upper()])


@dataclass(frozen=True, slots=True)
class _Names:
    """What one version of cgroups calls things."""

    limit: str
    usage: str
    peak: str
    kills: str  # file with a line `oom_kill N`
    cache: str  # the last three are lines of memory.stat, the group's children included
    anonymous: str
    faults: str


_NAMES = {
    1: _Names(
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "memory.max_usage_in_bytes",
        "memory.oom_control",
        "total_cache",
        "total_rss",
        "total_pgmajfault",
    ),
    2: _Names("memory.max", "memory.current", "memory.peak", "memory.events", "file", "anon", "pgmajfault"),
}


class MemoryGroup:
    """A cgroup that limits the processes started through `prefix`. No swap within it."""

    def __init__(self, name: str, limit: int, hierarchy: Hierarchy | None = None) -> None:
        """hierarchy: where to make it, if not wherever the machine has memory groups."""
        hierarchy = hierarchy or required("memory")
        self.limit = limit
        self.version = hierarchy.version
        self._names = _NAMES[hierarchy.version]
        try:
            self.path = hierarchy.make(name, "memory")
            (self.path / self._names.limit).write_text(str(limit))
            if self.version == 2:
                self._optional("memory.swap.max", "0")
            else:
                self._optional("memory.memsw.limit_in_bytes", str(limit))  # with swap no more than without
                self._optional("memory.swappiness", "0")
        except OSError as error:
            raise LabUnavailableError(f"no memory cgroup can be made here: {error}") from None

    def _optional(self, file: str, value: str) -> None:
        if (self.path / file).exists():
            (self.path / file).write_text(value)

    @property
    def prefix(self) -> tuple[str, ...]:
        """What goes before a command so that it begins inside the group."""
        return prefix_into(self.path)

    def _read(self, name: str) -> int:
        return int((self.path / name).read_text())

    def _stat(self, name: str) -> int:
        return keyed(self.path / "memory.stat").get(name, 0)

    @property
    def usage(self) -> int:
        """Bytes held now, page cache included."""
        return self._read(self._names.usage)

    @property
    def peak(self) -> int:
        """The most bytes the group has held, page cache included."""
        return self._read(self._names.peak)

    @property
    def oom_kills(self) -> int:
        """Processes of the group that the kernel killed for want of memory."""
        return keyed(self.path / self._names.kills).get("oom_kill", 0)

    @property
    def cache(self) -> int:
        """Bytes of files in memory."""
        return self._stat(self._names.cache)

    @property
    def anonymous(self) -> int:
        """Bytes of programs' own memory, which only their end or swap gives back."""
        return self._stat(self._names.anonymous)

    @property
    def locked(self) -> int:
        """Bytes that may not be evicted."""
        return self._stat("unevictable" if self.version == 2 else "total_unevictable")

    @property
    def major_faults(self) -> int:
        """Page faults that waited for the disk."""
        return self._stat(self._names.faults)

    @property
    def swapped(self) -> int:
        """Bytes of the group in swap now."""
        if self.version == 1:
            return self._stat("total_swap")
        file = self.path / "memory.swap.current"
        return int(file.read_text()) if file.exists() else 0

    def close(self) -> None:
        remove_group(self.path)
