"""Directories laid out as the kernel documents cgroups of version 2 (admin-guide/cgroup-v2 of its source).

For machines whose memory controller is with version 1: a controller cannot be in both at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Memory:
    """A group's limits (None: "max") and what it holds, in bytes, its children's included."""

    maximum: int | None = None
    high: int | None = None
    anon: int = 0
    inactive_file: int = 0
    active_file: int = 0
    shmem: int = 0
    unevictable: int = 0
    kernel: int = 0
    swap_max: int | None = None

    @property
    def current(self) -> int:
        return self.anon + self.inactive_file + self.active_file + self.shmem + self.kernel


def lay_out(root: Path, groups: dict[str, Memory]) -> None:
    """Files of the root group, which has no limits and no usage, and of `groups` by their paths below it."""
    root.mkdir(parents=True, exist_ok=True)
    _write(root, {"cgroup.controllers": "cpuset cpu io memory pids", "cgroup.procs": ""})
    (root / "cgroup.subtree_control").write_text("cpu io memory pids\n")
    for path, memory in groups.items():
        folder = root / path
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder, _files(memory))


def _files(memory: Memory) -> dict[str, str]:
    file = memory.inactive_file + memory.active_file + memory.shmem
    stat = {
        "anon": memory.anon,
        "file": file,
        "kernel": memory.kernel,
        "kernel_stack": memory.kernel // 4,
        "pagetables": memory.kernel // 4,
        "percpu": 0,
        "sock": 0,
        "vmalloc": 0,
        "shmem": memory.shmem,
        "file_mapped": memory.active_file,
        "file_dirty": 0,
        "file_writeback": 0,
        "swapcached": 0,
        "anon_thp": 0,
        "inactive_anon": memory.anon + memory.shmem - memory.unevictable,
        "active_anon": 0,
        "inactive_file": memory.inactive_file,
        "active_file": memory.active_file,
        "unevictable": memory.unevictable,
        "slab_reclaimable": memory.kernel // 4,
        "slab_unreclaimable": memory.kernel // 4,
        "slab": memory.kernel // 2,
        "workingset_refault_anon": 0,
        "workingset_refault_file": 0,
        "pgfault": 1000,
        "pgmajfault": 9,
    }
    return {
        "cgroup.controllers": "cpu io memory pids",
        "cgroup.subtree_control": "",
        "cgroup.procs": "",
        "memory.min": "0",
        "memory.low": "0",
        "memory.high": _limit(memory.high),
        "memory.max": _limit(memory.maximum),
        "memory.current": str(memory.current),
        "memory.peak": str(memory.current),
        "memory.swap.max": _limit(memory.swap_max),
        "memory.swap.current": "0",
        "memory.events": "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0",
        "memory.stat": "\n".join(f"{name} {value}" for name, value in stat.items()),
    }


def _limit(value: int | None) -> str:
    return "max" if value is None else str(value)


def _write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n" if text else "")
