"""A long run beside other programs: on every device one takes memory and gives it back while requests are
answered. Nobody may be killed, nothing swapped, no limit exceeded, and every answer must be the first one's.

    python -m benchmarks.soak --minutes 60
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.daemons import Prompts
from benchmarks.emulated import EmulatedCluster, Limits
from benchmarks.models import chosen_model, model_arguments
from benchmarks.stores import prepared_store
from tests.lab import CapturedProcess, Daemon, Device, LabError, hog, usage_of

STEP = 8 * 2**20  # bytes a hog takes or gives back at once
MIB = 2**20

Ask = Callable[[], Sequence[int]]
"""Puts one request and returns the tokens of its answer."""


@dataclass
class Soak:
    """What has been seen so far."""

    answers: int = 0
    tokens: int = 0
    slowest_s: float = 0.0
    held_by_others: list[int] = field(default_factory=list)  # bytes, the most of each device
    peaks: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def said(self) -> str:
        others = ", ".join(f"{held / MIB:.0f}" for held in self.held_by_others)
        peaks = ", ".join(f"{peak / MIB:.0f}" for peak in self.peaks)
        text = (
            f"{self.answers} answers, {self.tokens} tokens, the slowest answer {self.slowest_s:.1f} s; "
            f"others held up to {others} MiB, cgroups up to {peaks} MiB"
        )
        return "\n".join([text, *self.problems])


def soak(
    daemons: Sequence[Daemon],
    devices: Sequence[Device],
    ask: Ask,
    *,
    seconds: float,
    greed: float,
    pause: float,
    report: Callable[[Soak], None] = lambda _: None,
) -> Soak:
    """Asks again and again until `seconds` have passed or something is wrong: see `Soak.problems`.

    greed: share of a device's limit that the other program takes at most.  pause: seconds between its steps.
    """
    seen = Soak()
    hogs = [_start_hog(device, greed, pause, seed) for seed, device in enumerate(devices)]
    expected: Sequence[int] | None = None
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline and not seen.problems:
            began = time.monotonic()
            tokens = list(ask())
            seen.slowest_s = max(seen.slowest_s, time.monotonic() - began)
            expected = expected or tokens
            seen.answers += 1
            seen.tokens += len(tokens)
            seen.held_by_others = [_most_held(each) for each in hogs]
            seen.problems = _problems(daemons, devices, hogs)
            seen.peaks = [device.memory.peak for device in devices if device.memory is not None]
            if tokens != expected:
                seen.problems.append(f"answer {seen.answers} differs from the first")
            report(seen)
    finally:
        for each in hogs:
            each.close()
    return seen


def _start_hog(device: Device, greed: float, pause: float, seed: int) -> CapturedProcess:
    assert device.memory is not None
    most = str(int(device.memory.limit * greed))
    return device.popen([sys.executable, hog.__file__, most, str(STEP), str(pause), str(seed)])


def _most_held(process: CapturedProcess) -> int:
    return max((int(line.split()[1]) for line in process.lines if line.startswith("holds ")), default=0)


def _problems(
    daemons: Sequence[Daemon], devices: Sequence[Device], hogs: Sequence[CapturedProcess]
) -> list[str]:
    found = []
    for device in devices:
        group = device.memory
        assert group is not None
        if group.oom_kills:
            found.append(f"{device.name}: {group.oom_kills} killed for want of memory")
        if group.swapped:
            found.append(f"{device.name}: {group.swapped} bytes in swap")
        if group.peak > group.limit:
            found.append(f"{device.name}: {group.peak} bytes held, {group.limit} allowed")
    found += [f"{each.label} ended" for each in hogs if not each.running]
    for daemon in daemons:
        if not daemon.process.running:
            found.append(f"{daemon.place.name} ended")
        elif usage_of(daemon.process.pid).swapped:
            found.append(f"{daemon.place.name} is in swap")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Requests for a long time beside hungry programs.")
    model_arguments(parser)
    parser.set_defaults(size="3B")
    parser.add_argument("--minutes", type=float, default=60.0, help="(60)")
    parser.add_argument("--nodes", type=int, default=2, help="(2)")
    parser.add_argument("--each", type=int, default=40, metavar="PERCENT", help="of the model per node (40)")
    parser.add_argument(
        "--greed", type=int, default=15, metavar="PERCENT", help="of a node's limit, others at most (15)"
    )
    parser.add_argument(
        "--pause", type=float, default=0.25, help="seconds between their steps of 8 MiB (0.25)"
    )
    parser.add_argument("--tokens", type=int, default=6, help="per request (6)")
    parser.add_argument("--threads", type=int, default=1, help="of each daemon (1)")
    parser.add_argument("--ctx", type=int, default=512, help="positions (512)")
    parser.add_argument("--disk-rate", metavar="SIZE", help="bytes a second of each node's disk (its own)")
    options = parser.parse_args()
    subject = chosen_model(options)
    prompt = Prompts(subject.n_vocab).take(8)
    memory = str(subject.path.stat().st_size * options.each // 100)
    limits = Limits(memory=memory, link="1gbit", disk_rate=options.disk_rate)
    flags = ("--ctx", str(options.ctx), "--parallel", "1")
    prepared = prepared_store(subject.path)
    with EmulatedCluster(prepared, options.nodes, limits, options.threads, *flags) as cluster:
        last = [time.monotonic()]

        def report(seen: Soak) -> None:
            if time.monotonic() - last[0] > 60:
                last[0] = time.monotonic()
                print(seen.said(), file=sys.stderr)

        seen = soak(
            cluster.daemons,
            cluster.devices,
            lambda: cluster.decode(prompt, options.tokens).tokens,
            seconds=options.minutes * 60,
            greed=options.greed / 100,
            pause=options.pause,
            report=report,
        )
    print(seen.said())
    if seen.problems:
        raise LabError(f"{len(seen.problems)} problems")


if __name__ == "__main__":
    main()
