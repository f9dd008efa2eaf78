"""A plan for a person to read, and as the JSON object that `edged plan --json` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from edged.cli.progress import size_text
from edged.cli.ring_text import layer_range, ring_text
from edged.cli.terminal import clean

if TYPE_CHECKING:
    from rich.table import Table

    from edged.planning.model_profile import ModelProfile
    from edged.planning.plan import DeviceExpectation, Expectation, Hop, Plan
    from edged.planning.profile import ClusterProfile
    from edged.planning.upgrades import Upgrade
    from edged.rpc.messages import StatusAnswer

WIDTH = 160  # columns where there is no terminal to ask
MOST_UPGRADES = 3  # that are worth a line
MOST_WINDOWS = 4  # of a device that are listed; more are counted


def as_document(plan: Plan, cluster: ClusterProfile, upgrades: Sequence[Upgrade]) -> dict[str, Any]:
    """Milliseconds, bytes and layer numbers; `ring` has one entry per window, in ring order."""
    expected = _expected(plan)
    names = _names(cluster)
    return {
        "model": plan.model,
        "solver": plan.solver,
        "objective": plan.objective,
        "head": names[plan.head],
        "rounds": plan.rounds,
        "tpot_ms": expected.tpot_ms,
        "ttft_ms": expected.ttft_ms,
        "prompt_tokens": expected.prompt,
        "stage_ms": expected.stage_ms,
        "bytes_read_per_token": expected.bytes_read_per_token,
        "ring": [_hop(hop, names) for hop in plan.hops],
        "devices": [{**one.model_dump(), "device": names[one.device]} for one in expected.devices],
        "left_out": [
            {"device": names[out.device], "reason": out.reason, "would_cost_ms": out.would_cost_ms}
            for out in plan.left_out
        ],
        "upgrades": [{"what": one.what, "saves_ms": one.saves_ms} for one in upgrades],
        "note": plan.note,
    }


def _hop(hop: Hop, names: dict[str, str]) -> dict[str, Any]:
    return {
        "device": names[hop.device],
        "first": hop.first,
        "last": hop.last,
        "gpu": hop.gpu_layers,
        "resident": hop.resident,
        "streamed": hop.streamed,
        "streams_output": hop.streams_output,
    }


def print_plan(
    out: TextIO,
    plan: Plan,
    cluster: ClusterProfile,
    model: ModelProfile,
    upgrades: Sequence[Upgrade],
    running: StatusAnswer | None = None,
) -> None:
    """running: of the cluster that runs this model already."""
    from rich.console import Console

    console = Console(file=out, highlight=False, markup=False, width=None if out.isatty() else WIDTH)
    facts = [*_facts(plan, cluster, model), *([] if running is None else [("now", _now(running))])]
    for label, text in facts:
        console.print(clean(f"{label:<9} {text}"), soft_wrap=True)
    console.print()
    console.print(_table(plan, cluster))
    for line in _after(plan, cluster, upgrades):
        console.print(clean(line), soft_wrap=True)


def _facts(plan: Plan, cluster: ClusterProfile, model: ModelProfile) -> Iterator[tuple[str, str]]:
    expected = _expected(plan)
    size = f"{size_text(model.total_bytes)} in {model.n_layers} layers"
    yield "model", f"{model.name or model.model}, {size}"
    options = plan.context
    sequences = "1 sequence" if options.n_seq_max == 1 else f"{options.n_seq_max} sequences"
    yield "context", f"{sequences} of {options.n_ctx} tokens, KV {options.kv_type}"
    rounds = "1 round" if plan.rounds == 1 else f"{plan.rounds} rounds"
    yield "plan", f"solver {plan.solver} for {plan.objective}, {rounds}, head {_names(cluster)[plan.head]}"
    per_second = f"{1e3 / expected.tpot_ms:.2f} tokens/s"
    yield "expected", f"{expected.tpot_ms:.1f} ms a token ({per_second}) for one stream"
    prompt = f"after a prompt of {expected.prompt} tokens"
    yield "", f"{expected.ttft_ms:.0f} ms to the first token {prompt}"
    yield "", f"{expected.stage_ms:.1f} ms a token of many streams together"
    if expected.bytes_read_per_token:
        yield "", f"{size_text(expected.bytes_read_per_token)} read from disks for every token"


def _now(status: StatusAnswer) -> str:
    ring = ring_text(status)
    if status.measured_tpot_ms is None:
        return f"{ring} runs"
    return f"{ring} runs, {status.measured_tpot_ms:.1f} ms a token measured"


def _table(plan: Plan, cluster: ClusterProfile) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("DEVICE", "LAYERS", "WINDOWS"):
        table.add_column(heading, overflow="fold")
    numbers = (
        "RESIDENT",
        "STREAMED",
        "GPU",
        "MEMORY",
        "LEFT",
        "VRAM",
        "LEFT",
        "COMPUTE",
        "WAIT",
        "HOPS",
        "DISK",
    )
    for heading in numbers:
        table.add_column(heading, justify="right")
    names = _names(cluster)
    for one in _expected(plan).devices:
        table.add_row(*(clean(cell) for cell in _row(names[one.device], one, plan)))
    return table


def _streamed(hops: Sequence[Hop]) -> str:
    layers = sum(hop.streamed for hop in hops)
    parts = [str(layers)] if layers else []
    parts += ["output"] if any(hop.streams_output for hop in hops) else []
    return " + ".join(parts) or "-"


def _row(name: str, one: DeviceExpectation, plan: Plan) -> tuple[str, ...]:
    hops = [hop for hop in plan.hops if hop.device == one.device]
    ranges = [layer_range(hop.first, hop.last) for hop in hops]
    shown = ", ".join(ranges[:MOST_WINDOWS])
    if len(ranges) > MOST_WINDOWS:
        shown += f" and {len(ranges) - MOST_WINDOWS} more"
    has_gpu = one.gpu_memory + one.gpu_memory_left > 0
    return (
        name,
        str(sum(hop.n_layers for hop in hops)),
        shown,
        str(sum(hop.resident for hop in hops)),
        _streamed(hops),
        str(sum(hop.gpu_layers for hop in hops) or "-"),
        size_text(one.memory),
        size_text(one.memory_left),
        size_text(one.gpu_memory) if has_gpu else "-",
        size_text(one.gpu_memory_left) if has_gpu else "-",
        f"{one.compute_ms:.1f} ms",
        f"{one.stall_ms:.1f} ms" if one.stall_ms else "-",
        f"{one.hop_ms:.1f} ms",
        f"{one.disk_ms:.1f} ms" if one.disk_ms else "-",
    )


def _after(plan: Plan, cluster: ClusterProfile, upgrades: Sequence[Upgrade]) -> Iterator[str]:
    names = _names(cluster)
    if plan.left_out or upgrades or plan.note:
        yield ""
    for out in plan.left_out:
        yield f"left out  {names[out.device]}: {out.reason}"
    for one in upgrades[:MOST_UPGRADES]:
        yield f"would help: {one.what} saves {one.saves_ms:.1f} ms a token"
    if plan.note:
        yield f"note      {plan.note}"


def _names(cluster: ClusterProfile) -> dict[str, str]:
    """What devices are called; ids where two have one name."""
    names = [device.name for device in cluster.devices]
    return {
        device.device: device.name if names.count(device.name) == 1 else device.device
        for device in cluster.devices
    }


def _expected(plan: Plan) -> Expectation:
    assert plan.expected is not None
    return plan.expected
