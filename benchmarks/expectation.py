"""What a plan says a token will take, against what it takes, on clusters in the emulated home.

Real daemons in network namespaces measure themselves and their links, plan, load and generate. The plan's
own expectation is held against the time per token that a client sees, and what it says of each device against
that device's own count of the time inside its windows. On a machine that does other things as well, daemons
wait for cores; how long, Linux counts. Prompt and answer are such that the cache is as deep as the planner
takes it to be.

    python -m benchmarks.expectation
    python -m benchmarks.expectation --clusters streamed --rounds 5 --json expectation.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.compare import machine
from benchmarks.daemons import Prompts
from benchmarks.emulated import EmulatedCluster, HopCount, Limits
from benchmarks.models import chosen_model, model_arguments
from benchmarks.stores import prepared_store
from edged.errors import EdgedError
from edged.planning.device_costs import Workload
from edged.planning.plan import Expectation, Plan
from tests.lab import Delay, LabError

WARM_UP = 4  # tokens that are not counted; while they come, the devices' counts are read
MIB = 2**20
PROGRAM = (
    256 * MIB
)  # of a device's memory besides "memory for ... of the model"; caches and buffers take more
CTX = 512


@dataclass(frozen=True, slots=True)
class Part:
    """One device of a cluster."""

    holds: float | None = None  # its memory, in models and besides them PROGRAM; None: no limit
    link: str | None = None
    delay_ms: float = 0.0
    disk_rate: str | None = None
    cores: tuple[int, ...] = ()
    threads: int = 1

    def limits(self, model_bytes: int) -> Limits:
        return Limits(
            memory=None if self.holds is None else str(int(self.holds * model_bytes) + PROGRAM),
            link=self.link,
            delay=Delay(self.delay_ms) if self.delay_ms else None,
            disk_rate=self.disk_rate,
            cores=self.cores,
            threads=self.threads,
        )


# Slow disks: after each pause the kernel's limiter lets a tenth of a second's bytes through at once.
WIRED = "1gbit"
SLOW = "100mbit"
CLUSTERS: dict[str, tuple[str, tuple[Part, ...]]] = {
    "alone": ("one device, one core", (Part(),)),
    "two wired": (
        "two devices of one core, each with memory for 0.8 of the model, 1 Gbit/s",
        (Part(0.8, WIRED), Part(0.8, WIRED)),
    ),
    "three slow": (
        "three devices of one core, memory for 0.7, 0.45, 0.4 of the model, 100 Mbit/s, 2 ms more each way",
        (Part(0.7, SLOW, 2.0), Part(0.45, SLOW, 2.0), Part(0.4, SLOW, 2.0)),
    ),
    "unlike cores": (
        "three devices with 2, 1 and 1 threads, memory for 0.6, 0.45 and 0.45 of the model, 1 Gbit/s",
        (Part(0.6, WIRED, threads=2), Part(0.45, WIRED), Part(0.45, WIRED)),
    ),
    "streamed": (
        "two devices with memory for 0.6 and 0.25 of the model, disks of 100 MiB/s, 1 Gbit/s",
        (Part(0.6, WIRED, disk_rate="100M"), Part(0.25, WIRED, disk_rate="100M")),
    ),
    "streamed alone": (
        "one device with memory for 0.7 of the model, a disk of 100 MiB/s",
        (Part(0.7, disk_rate="100M"),),
    ),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """One round: milliseconds per token, and of each device inside its windows."""

    token_ms: float
    compute_ms: tuple[float, ...]
    waited_ms: tuple[float, ...]  # of that and of the hops: for a core that other programs had


@dataclass(frozen=True, slots=True)
class DeviceResult:
    """Milliseconds per token of one device in the ring."""

    name: str
    windows: str
    compute_ms: float  # expected, of its windows
    stall_ms: float  # expected in the middle of windows
    hop_ms: float  # expected, on the way to it
    disk_ms: float  # expected, of its disk's work
    measured_ms: float  # inside its windows, waiting for layers and cores included
    waited_ms: float  # for a core


@dataclass(frozen=True, slots=True)
class Result:
    """One cluster."""

    cluster: str
    description: str
    expected_ms: float
    measured_ms: tuple[float, ...]  # per round
    waited_ms: tuple[float, ...]  # of that, for cores that other programs had
    bytes_read: int  # expected, per token
    devices: tuple[DeviceResult, ...]

    @property
    def ratio(self) -> float:
        """Measured over expected."""
        return statistics.median(self.measured_ms) / self.expected_ms

    @property
    def own_ms(self) -> tuple[float, ...]:
        """Per round, without waiting for a core that another program had."""
        return tuple(all_ - waited for all_, waited in zip(self.measured_ms, self.waited_ms, strict=True))

    @property
    def own_ratio(self) -> float:
        return statistics.median(self.own_ms) / self.expected_ms


def measure(
    name: str, prepared: Path, model_bytes: int, prompts: Prompts, options: argparse.Namespace
) -> Result:
    description, parts = CLUSTERS[name]
    limits = [part.limits(model_bytes) for part in parts]
    flags = ("--ctx", str(CTX), "--parallel", "1", "--objective", "latency")
    with EmulatedCluster(prepared, len(parts), limits, 1, *flags, surveyed=True) as cluster:
        plan = cluster.plan
        if plan.expected is None:
            raise LabError("the plan says nothing of the time it will take")
        prompt_tokens = Workload().depth - WARM_UP - options.tokens
        answers = []
        for number in range(options.rounds):
            answers.append(_answer(cluster, prompts.take(prompt_tokens), WARM_UP + options.tokens))
            said = f"{answers[-1].token_ms:.1f} ms, expected {plan.expected.tpot_ms:.1f}"
            print(f"{name} round {number + 1} of {options.rounds}: {said}", file=sys.stderr)
        now = cluster.daemons[0].status().plan
        if now is None or now.epoch != plan.epoch:
            raise LabError("the cluster planned again while it was measured")
        return Result(
            cluster=name,
            description=description,
            expected_ms=plan.expected.tpot_ms,
            measured_ms=tuple(answer.token_ms for answer in answers),
            waited_ms=tuple(sum(answer.waited_ms) for answer in answers),
            bytes_read=plan.expected.bytes_read_per_token,
            devices=_devices(plan, plan.expected, cluster.ids(), answers),
        )


def _answer(cluster: EmulatedCluster, prompt: Sequence[int], max_tokens: int) -> Answer:
    """One greedy answer; what its first WARM_UP tokens take is not counted."""
    at: list[float] = []
    before: list[HopCount] = []
    threads: list[dict[int, Thread]] = []
    for came in cluster.tokens(prompt, max_tokens):
        at += [time.perf_counter()] * len(came)
        before = before or cluster.hop_counts()
        if len(at) >= WARM_UP and not threads:
            threads = _threads(cluster)
    waited = tuple(
        _waited_s(one, other) * 1e3 / (max_tokens - WARM_UP)
        for one, other in zip(threads, _threads(cluster), strict=True)
    )
    compute = tuple(
        _per_token_ms(one, other) for one, other in zip(before, cluster.hop_counts(), strict=True)
    )
    return Answer(1e3 * (at[-1] - at[WARM_UP - 1]) / (max_tokens - WARM_UP), compute, waited)


@dataclass(frozen=True, slots=True)
class Thread:
    """Nanoseconds, as Linux counts them."""

    ran: int
    waited: int  # for a core, being ready to run


def _threads(cluster: EmulatedCluster) -> list[dict[int, Thread]]:
    """Of every daemon, by thread id."""
    found = []
    for daemon in cluster.daemons:
        own: dict[int, Thread] = {}
        for task in Path(f"/proc/{daemon.process.pid}/task").iterdir():
            with suppress(OSError):  # it has ended
                ran, waited, _ = map(int, (task / "schedstat").read_text().split())
                own[int(task.name)] = Thread(ran, waited)
        found.append(own)
    return found


def _waited_s(before: dict[int, Thread], after: dict[int, Thread]) -> float:
    """Of the thread that ran most, which is the one that computes."""
    busiest = max(before.keys() & after.keys(), key=lambda thread: after[thread].ran - before[thread].ran)
    return (after[busiest].waited - before[busiest].waited) / 1e9


def _per_token_ms(before: HopCount, after: HopCount) -> float:
    """In all windows of a device; by the frames of each, as counts are read while a token is under way."""
    seconds = 0.0
    for hop, total in after.compute_s.items():
        frames = after.frames[hop] - before.frames[hop]
        seconds += (total - before.compute_s[hop]) / frames
    return 1e3 * seconds


def _devices(
    plan: Plan, expected: Expectation, ids: Sequence[str], answers: Sequence[Answer]
) -> tuple[DeviceResult, ...]:
    found = []
    for one in expected.devices:
        number = ids.index(one.device)
        windows = [hop for hop in plan.hops if hop.device == one.device]
        found.append(
            DeviceResult(
                name=f"d{number}",
                windows=", ".join(
                    f"[{hop.first},{hop.last})" + (f" {hop.streamed} streamed" if hop.streamed else "")
                    for hop in windows
                ),
                compute_ms=one.compute_ms,
                stall_ms=one.stall_ms,
                hop_ms=one.hop_ms,
                disk_ms=one.disk_ms,
                measured_ms=statistics.median(answer.compute_ms[number] for answer in answers),
                waited_ms=statistics.median(answer.waited_ms[number] for answer in answers),
            )
        )
    return tuple(found)


def markdown(results: Sequence[Result]) -> str:
    rows = [
        (
            "cluster",
            "expected ms",
            "measured ms (least to greatest)",
            "measured / expected",
            "without waiting for cores",
            "ratio",
            "MB read",
        )
    ]
    rows += [
        (
            result.cluster,
            f"{result.expected_ms:.1f}",
            _spread(result.measured_ms),
            f"{result.ratio:.2f}",
            _spread(result.own_ms),
            f"{result.own_ratio:.2f}",
            f"{result.bytes_read / 1e6:.0f}",
        )
        for result in results
    ]
    parts = [
        (
            "cluster",
            "device",
            "windows",
            "compute ms",
            "waits for disk",
            "in windows, measured",
            "of it for a core",
            "hops",
            "disk",
        )
    ]
    parts += [
        (
            result.cluster,
            one.name,
            one.windows,
            f"{one.compute_ms:.1f}",
            f"{one.stall_ms:.1f}",
            f"{one.measured_ms:.1f}",
            f"{one.waited_ms:.1f}",
            f"{one.hop_ms:.1f}",
            f"{one.disk_ms:.1f}",
        )
        for result in results
        for one in result.devices
    ]
    listed = [f"- **{result.cluster}**: {result.description}" for result in results]
    return "\n".join([*listed, "", *_table(rows), "", *_table(parts)])


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    ruled = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return ["| " + " | ".join(row) + " |" for row in ruled]


def main() -> None:
    options = _parsed(sys.argv[1:])
    subject = chosen_model(options)
    prepared = prepared_store(subject.path)
    prompts = Prompts(subject.n_vocab)
    results = []
    for name in options.clusters:
        try:
            results.append(measure(name, prepared, subject.path.stat().st_size, prompts, options))
        except (EdgedError, LabError) as error:
            notes = "\n".join(getattr(error, "__notes__", ()))
            print(f"{name}: {error}\n{notes}", file=sys.stderr)
    settings = {"model": subject.description, "tokens": options.tokens, **machine()}
    body = json.dumps({"settings": settings, "results": [asdict(result) for result in results]}, indent=2)
    if options.json is not None and str(options.json) == "-":
        print(body)
    else:
        print(markdown(results))
        print("\n" + ", ".join(f"{key} {value}" for key, value in settings.items()))
        if options.json is not None:
            options.json.write_text(body + "\n")
    if len(results) < len(options.clusters):
        raise SystemExit(1)


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What plans say a token takes, against what it takes.")
    model_arguments(parser)
    parser.add_argument("--clusters", nargs="+", choices=CLUSTERS, default=list(CLUSTERS), help="(all)")
    parser.add_argument("--tokens", type=int, default=48, help="counted per round (48)")
    parser.add_argument("--rounds", type=int, default=3, help="answers per cluster (3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here, - for stdout")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
