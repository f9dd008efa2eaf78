"""This device as the planner should see it: measured once for speed, read anew for memory and disk."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import psutil

from edged.backend.native import Speed, measure
from edged.device.cgroup import tightest_limit
from edged.device.speed_record import best_of
from edged.planning.profile import DeviceProfile

KEEP_FREE = 0.1  # of the memory that is free now: other programs live here too
RUNTIME_BYTES = 160 * 2**20  # the daemon itself: 116 MiB when idle, 22 the child for templates, and buffers
MEASURED_SHARE = 8  # a measurement takes one part in so many of the memory for models


def available_memory() -> int:
    """Bytes that could be taken now without pushing anything out, within the limits of containers."""
    free = psutil.virtual_memory().available
    if (cgroup := tightest_limit()) is not None:
        free = min(free, cgroup.available)
    return int(free)


def memory_total() -> int:
    """Bytes of memory that this process may use at most."""
    cgroup = tightest_limit()
    total = int(psutil.virtual_memory().total)
    return total if cgroup is None else min(total, cgroup.limit)


def memory_budget(cap: int | None, held: int) -> int:
    """Bytes edged may hold in layers and caches: what is free now and what it holds already, within limits.

    cap: the user's own limit (--memory), None for none.  held: bytes of windows loaded at this moment.
    """
    budget = int(available_memory() * (1 - KEEP_FREE)) + held
    if cap is not None:
        budget = min(budget, cap)
    return max(0, budget - RUNTIME_BYTES)


def measure_speed(threads: int, cap: int | None, home: Path) -> Speed:
    """How fast this device computes, measured with a small share of what `memory_budget` allows.

    The best is kept in `home`, so that a start in a busy moment does not make the device seem slow.
    """
    measured = measure(threads, memory=memory_budget(cap, held=0) // MEASURED_SHARE)
    return best_of(measured, threads, home / "run" / "speed")


def profile(
    *, device: str, name: str, home: Path, threads: int, speed: Speed, cap: int | None, held: int
) -> DeviceProfile:
    """The profile to plan with; `speed` was measured at the start of the daemon."""
    return DeviceProfile(
        device=device,
        name=name,
        memory_budget=memory_budget(cap, held),
        disk_free=shutil.disk_usage(home).free,
        threads=threads,
        bandwidth=speed.bandwidth,
        flops=speed.flops,
        system=f"{platform.system()} {platform.machine()}, {psutil.cpu_count(logical=False) or 1} cores",
    )
