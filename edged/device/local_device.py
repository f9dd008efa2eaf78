"""This device as the planner should see it: measured for speed and remembered, read anew for what is free."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import psutil

from edged import __version__
from edged.backend import native
from edged.device import disk, machine, processors
from edged.device.cgroup import tightest_limit
from edged.device.speed_record import Measured, SpeedRecord
from edged.planning.profile import DeviceProfile, ProcessorProfile
from edged.rpc.messages import Progress

KEEP_FREE = 0.1  # of the memory that is free but for edged's layers: other programs live here too
RUNTIME_BYTES = 160 * 2**20  # the daemon itself: 116 MiB when idle, 22 the child for templates, and buffers
MEASURED_SHARE = 8  # a measurement takes one part in so many of the memory for models
METHOD = 3  # of measuring: figures of another are not comparable
USUAL_TYPE = "q4_0"  # of a profile's one figure for all types
STATUS = Path("/proc/self/status")


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


def own_memory() -> int:
    """Bytes that this process has taken, but for what the system can read from files again."""
    with suppress(OSError, ValueError, IndexError):
        for line in STATUS.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)


def memory_budget(cap: int | None, held: int) -> int:
    """Bytes edged may hold in layers and caches: what is free now and what it holds already, within limits.

    It is the same before and after windows are loaded: what is kept free for others is a share of both. Of
    `held` no more counts than this process has taken in fact; what it has taken besides is not to come any
    more. Swap counts for nothing: weights in it would be read back for every token.
    cap: the user's own limit (--memory) of all that edged takes, None for none.
    held: bytes of windows loaded at this moment.
    """
    own = own_memory()
    ours = min(held, own)
    to_come = max(0, RUNTIME_BYTES - (own - ours))
    budget = int((available_memory() + ours) * (1 - KEEP_FREE)) - to_come
    if cap is not None:
        budget = min(budget, cap - RUNTIME_BYTES)
    return max(0, budget)


def circumstances(threads: int, cap: int | None, home: Path) -> str:
    """All that a measurement depends on: while this is the same, it need not be repeated."""
    cgroup = tightest_limit()
    facts = (
        f"edged {__version__}, method {METHOD}",
        f"llama-cpp-python {version('llama-cpp-python')}",
        native.system_info(),
        machine.describe(),
        f"{threads} threads",
        f"memory {cap}",
        f"cgroup {None if cgroup is None else cgroup.limit}",
        f"disk {disk.file_system(home)}",
        *(f"{device.name}: {device.description}" for device in processors.computing_devices()),
        *processors.TYPES,
    )
    return "\n".join(facts)


def remembered(threads: int, cap: int | None, home: Path) -> Measured | None:
    """What earlier measurements found, if nothing has changed since."""
    return SpeedRecord(home).find(circumstances(threads, cap, home))


def measure(
    threads: int,
    cap: int | None,
    home: Path,
    report: Callable[[Progress], None] = lambda _: None,
    *,
    afresh: bool = False,
) -> Measured:
    """Measures this device, a few seconds long, and remembers the result in `home`, which exists.

    afresh: forget what was measured before; otherwise the best of both counts. Raises WindowError where the
    CPU cannot be measured.
    """
    done, total = 0, processors.steps() + 2

    def step() -> None:
        nonlocal done
        report(Progress(stage="measuring this device", done=done, total=max(total, done + 1)))
        done += 1

    of = circumstances(threads, cap, home)
    room = memory_budget(cap, held=0) // MEASURED_SHARE
    found = processors.measure_processors(threads, room, step)
    speed = disk.measure_disk(home, room, step)
    report(Progress(stage="measuring this device", done=done, total=done, finished=True))
    measured = Measured(of=of, processors=found, disk_sequential=speed.sequential, disk_random=speed.random)
    record = SpeedRecord(home)
    before = record.find(of)
    if before is not None and not afresh:
        measured = measured.with_best_of(before)
    record.keep(measured)
    return measured


def profile(
    *,
    device: str,
    name: str,
    home: Path,
    threads: int,
    measured: Measured,
    cap: int | None,
    held: int,
    stored: int = 0,
) -> DeviceProfile:
    """The profile to plan with, as of now.

    held: bytes of windows that edged has loaded here.  stored: bytes of parts in the store of `home`, which
    a share of layers need not take from the disk once more.
    """
    usual = measured.processors[0].speed(USUAL_TYPE)
    return DeviceProfile(
        device=device,
        name=name,
        memory_budget=memory_budget(cap, held),
        disk_free=shutil.disk_usage(home).free + stored,
        threads=threads,
        bandwidth=usual.decode,
        flops=usual.prefill,
        system=machine.describe(),
        os=machine.operating_system(),
        processors=_with_free_memory(measured.processors),
        disk_sequential=measured.disk_sequential,
        disk_random=measured.disk_random,
    )


def _with_free_memory(found: tuple[ProcessorProfile, ...]) -> tuple[ProcessorProfile, ...]:
    """GPUs with what their own memory has free at this moment."""
    if len(found) < 2:
        return found
    free = {device.name: device.memory_free for device in processors.computing_devices()}
    return tuple(
        processor
        if processor.kind == "cpu" or processor.shares_memory
        else processor.model_copy(
            update={"memory_budget": int(free.get(processor.name, 0) * (1 - KEEP_FREE))}
        )
        for processor in found
    )
