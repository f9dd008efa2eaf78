"""A model larger than memory: edged in limited devices against llama-cpp-python in one, in the same run.

Every node's cgroup holds an equal part of `--fits` percent of the model file, page cache included, and
`--extra` for the program itself. Each case is appended to `--results`, so that a long matrix can be taken in
pieces; `python -m benchmarks.residency_report FILE` makes table and plots of them.

    python -m benchmarks.residency --size 3B --nodes 2 --fits 80 --extra 0
    python -m benchmarks.residency --nodes 1 2 3 --fits 100 90 70 50 30 --link 1gbit 100mbit --rounds 1 2 4
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.daemons import Prompts
from benchmarks.emulated import Decoded, EmulatedCluster, Limits
from benchmarks.measurement import Case, Measurement, append
from benchmarks.models import Subject, chosen_model, model_arguments
from benchmarks.residency_report import table
from benchmarks.stores import prepared_store
from edged.errors import EdgedError
from edged.planning.footprint import share_bytes
from edged.planning.plan import Plan
from edged.planning.profile import ModelProfile
from edged.store.catalogue import Catalogue
from edged.store.model_profile import model_profile
from tests.lab import Delay, Home, LabError
from tests.lab.disk import forget

PROMPT = 8  # tokens
WARM_UP = 2  # tokens that are not counted: caches fill and reading ahead begins
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Task:
    """What a run measures everything with."""

    subject: Subject
    prepared: Path  # a home whose store holds the model
    profile: ModelProfile
    prompt: tuple[int, ...]
    tokens: int
    ctx: int


def measure_edged(task: Task, case: Case) -> Measurement:
    flags = ["--ctx", str(task.ctx), "--parallel", "1", *_residency_flags(case)]
    try:
        with EmulatedCluster(task.prepared, case.nodes, _limits(case), case.threads, *flags) as cluster:
            before = cluster.counters()
            decoded = cluster.decode(task.prompt, WARM_UP + task.tokens)
            after = cluster.counters()
            budgets, ids = cluster.budgets(), cluster.ids()
            groups = [device.memory for device in cluster.devices if device.memory is not None]
            names = {device_id: device.name for device_id, device in zip(ids, cluster.devices, strict=True)}
            return replace(
                _per_token(case, decoded),
                node_least_per_token=tuple(
                    least_per_token(task.profile, cluster.plan, node, budgets[node]) for node in ids
                ),
                largest_tensor=max(layer.largest_tensor for layer in task.profile.known_layers),
                node_peak=tuple(group.peak for group in groups),
                node_anonymous=tuple(group.anonymous for group in groups),
                node_locked=tuple(group.locked for group in groups),
                oom_kills=sum(group.oom_kills for group in groups),
                plan=describe(cluster.plan, names),
                counters={
                    name: value - before.get(name, 0.0) if name.endswith("_total") else value
                    for name, value in after.items()
                },
            )
    except (EdgedError, LabError) as error:
        return Measurement(case, problem=str(error).splitlines()[0])


def _per_token(case: Case, decoded: Decoded) -> Measurement:
    first, last = decoded.usage[WARM_UP - 1], decoded.usage[-1]
    costs = [later - earlier for earlier, later in zip(first, last, strict=True)]
    tokens = len(decoded.at) - WARM_UP
    return Measurement(
        case,
        token_s=tuple(b - a for a, b in itertools.pairwise(decoded.at[WARM_UP - 1 :])),
        read_per_token=sum(cost.read_bytes for cost in costs) / tokens,
        node_read_per_token=tuple(cost.read_bytes / tokens for cost in costs),
        faults_per_token=sum(cost.major_faults for cost in costs) / tokens,
        swapped=sum(cost.swapped for cost in costs),
        tokens=decoded.tokens,
    )


def least_per_token(model: ModelProfile, plan: Plan, device: str, budget: int) -> float:
    """Bytes of weights of a device's share that its budget cannot hold besides caches and buffers.

    They must be read again for every token, whatever is done.
    """
    windows = [(hop.first, hop.last) for hop in plan.hops if hop.device == device]
    weights = sum(sum(model.layer_bytes[first:last]) for first, last in windows)
    weights += model.output_bytes if any(last == model.n_layers for _, last in windows) else 0
    return float(max(0, min(weights, share_bytes(model, plan.context, windows) - budget)))


def describe(plan: Plan, names: dict[str, str]) -> str:
    hops = [
        f"{names.get(hop.device, hop.device)}[{hop.first},{hop.last})"
        + (f"-{hop.streamed}" if hop.streamed else "")
        + ("-output" if hop.streams_output else "")
        for hop in plan.hops
    ]
    return " → ".join(hops)


def measure_library(task: Task, case: Case) -> Measurement:
    """llama-cpp-python in one device with the limits of the case, as it is best there.

    The file mapped as it is; where the model fits, also with its matrices repacked, which is the default.
    """
    mapped = replace(_run_library(task, case), plan="mapped")
    if task.profile.total_bytes >= case.limit:
        return mapped
    return min(mapped, replace(_run_library(task, case, "--repack"), plan="repacked"), key=lambda m: m.tpot_s)


def _run_library(task: Task, case: Case, *flags: str) -> Measurement:
    command = [sys.executable, "-m", "benchmarks.library_child", str(task.subject.path), *flags]
    command += ["--prompt", ",".join(map(str, task.prompt)), "--tokens", str(WARM_UP + task.tokens)]
    command += ["--threads", str(case.threads), "--ctx", str(task.ctx)]
    limits = _limits(case)
    with Home() as home:
        device = home.device("d0", memory=limits.memory, disk_rate=limits.disk_rate)
        device.environment["PYTHONPATH"] = str(Path(__file__).parents[1])
        forget([task.subject.path])
        done = device.run(command, timeout=3600, check=False)
        group = device.memory
        assert group is not None
        if done.returncode != 0:
            why = "killed for want of memory" if group.oom_kills else done.stderr.strip()[-200:]
            return Measurement(case, oom_kills=group.oom_kills, node_peak=(group.peak,), problem=why)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        steady = lines[WARM_UP:]
        read = sum(line["read"] for line in steady) / len(steady)
        return Measurement(
            case,
            token_s=tuple(line["seconds"] for line in steady),
            read_per_token=read,
            node_read_per_token=(read,),
            node_least_per_token=(max(0.0, float(task.profile.total_bytes - case.limit)),),
            faults_per_token=sum(line["faults"] for line in steady) / len(steady),
            node_peak=(group.peak,),
            node_anonymous=(group.anonymous,),
            oom_kills=group.oom_kills,
            swapped=group.swapped,
            tokens=tuple(line["token"] for line in lines),
        )


def _limits(case: Case) -> Limits:
    return Limits(
        memory=str(case.limit),
        link=case.link or None,
        delay=Delay(case.delay_ms) if case.delay_ms else None,
        disk_rate=case.disk_rate or None,
    )


def _residency_flags(case: Case) -> list[str]:
    flags = [] if case.residency else ["--residency", "off"]
    return flags if case.rounds is None else [*flags, "--rounds", str(case.rounds)]


def cases(options: argparse.Namespace, model: str, size: int) -> Iterator[Case]:
    """The matrix, llama.cpp first wherever the limit of a node changes."""
    for fits, nodes, disk_rate in itertools.product(options.fits, options.nodes, options.disk_rate):
        limit = size * fits // 100 // nodes + options.extra * MIB
        base = Case(
            system="llama.cpp",
            model=model,
            model_bytes=size,
            nodes=1,
            fits=fits // nodes,
            limit=limit,
            link="",
            delay_ms=0.0,
            disk_rate="" if disk_rate == "none" else disk_rate,
            rounds=None,
            residency=False,
            threads=options.threads,
        )
        if not options.without_library:
            yield base
        for link, rounds, residency in itertools.product(options.link, options.rounds, options.residency):
            yield replace(
                base,
                system="edged",
                nodes=nodes,
                fits=fits,
                link="" if nodes == 1 or link == "none" else link,
                delay_ms=0.0 if nodes == 1 else options.delay,
                rounds=None if rounds == "plan" else int(rounds),
                residency=residency == "on",
            )


def main() -> None:
    options = _parsed(sys.argv[1:])
    subject = chosen_model(options)
    prepared = prepared_store(subject.path)
    manifest = Catalogue(prepared).models()[0]
    prompt = tuple(Prompts(subject.n_vocab).take(PROMPT))
    task = Task(subject, prepared, model_profile(manifest), prompt, options.tokens, options.ctx)
    wanted = list(dict.fromkeys(cases(options, subject.path.stem, subject.path.stat().st_size)))
    taken: list[Measurement] = []
    for repeat in range(options.repeat):
        for number, case in enumerate(wanted, start=1):
            began = time.monotonic()
            measure = measure_library if case.system == "llama.cpp" else measure_edged
            measurement = measure(task, case)
            append(options.results, measurement)
            taken.append(measurement)
            took = f"{time.monotonic() - began:.0f} s"
            print(
                f"[{repeat + 1}] {number} of {len(wanted)} in {took}: {_said(measurement)}", file=sys.stderr
            )
    print(table(taken))


def _said(measurement: Measurement) -> str:
    case = measurement.case
    name = f"{case.system} {case.nodes} x {case.limit // MIB} MiB {case.link} {case.disk_rate}"
    if case.system == "edged":
        name += f" rounds {case.rounds or 'as planned'} residency {'on' if case.residency else 'off'}"
    if measurement.problem:
        return f"{name}: {measurement.problem}"
    return f"{name}: {measurement.tpot_s:.3f} s, {measurement.read_per_token / 1e6:.0f} MB a token"


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A model larger than memory, against llama.cpp.")
    model_arguments(parser)
    parser.set_defaults(size="3B")
    parser.add_argument(
        "--fits", type=int, nargs="+", default=[80], metavar="PERCENT", help="of the model (80)"
    )
    parser.add_argument("--nodes", type=int, nargs="+", default=[2], help="(2)")
    parser.add_argument("--link", nargs="+", default=["1gbit"], help="rates, or none (1gbit)")
    parser.add_argument("--delay", type=float, default=0.0, metavar="MS", help="of each cable, each way (0)")
    parser.add_argument(
        "--disk-rate", nargs="+", default=["none"], metavar="SIZE", help="bytes a second per node (none)"
    )
    parser.add_argument("--rounds", nargs="+", default=["plan"], help="numbers, or plan (plan)")
    parser.add_argument("--residency", nargs="+", choices=("on", "off"), default=["on", "off"])
    parser.add_argument(
        "--extra", type=int, default=256, metavar="MIB", help="of memory per node, for the program (256)"
    )
    parser.add_argument("--threads", type=int, default=1, help="of each daemon and of llama.cpp (1)")
    parser.add_argument("--tokens", type=int, default=8, help="counted per case (8)")
    parser.add_argument("--ctx", type=int, default=512, help="positions (512)")
    parser.add_argument("--repeat", type=int, default=1, help="how often the whole matrix is taken (1)")
    parser.add_argument("--without-library", action="store_true", help="edged alone")
    parser.add_argument("--results", type=Path, default=Path("residency.jsonl"), metavar="FILE")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
