"""Leftovers of test runs that were killed: found by the process id in their names, and removed."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

import psutil

from tests.lab import cgroup, namespace
from tests.lab.shell import attempt

_NAME = re.compile(r"edl(\d+)x\d+(?:-.*)?")


def lab_name(pid: int, number: int) -> str:
    """Name of the `number`-th home of process `pid`; everything that belongs to it begins so."""
    return f"edl{pid}x{number}"


def _is_left_over(name: str) -> bool:
    match = _NAME.fullmatch(name)
    return match is not None and not psutil.pid_exists(int(match[1]))


def _names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()] if directory.is_dir() else []


def sweep() -> list[str]:
    """Removes what homes of dead processes left behind; returns the names removed."""
    removed = []
    for name in filter(_is_left_over, _names(namespace.NAMED)):
        namespace.destroy(name)
        removed.append(name)
    for root in cgroup.roots():
        for name in filter(_is_left_over, _names(root)):
            cgroup.remove_group(root / name)
            removed.append(name)
    temporary = Path(tempfile.gettempdir())
    for name in filter(_is_left_over, _names(temporary)):
        for mount in _mounts_under(temporary / name):
            attempt("umount", mount)
        shutil.rmtree(temporary / name, ignore_errors=True)
        removed.append(name)
    return removed


def _mounts_under(directory: Path) -> list[str]:
    targets = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [target for target in targets if target.startswith(f"{directory}/")]
