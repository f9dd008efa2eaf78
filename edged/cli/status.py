"""`edged status`: who is in the cluster, and who runs which layers."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from edged.cli.options import current_settings, home_option
from edged.cli.progress import size_text
from edged.cli.ring_text import device_names, layer_range, ring_text
from edged.cli.terminal import clean

if TYPE_CHECKING:
    from rich.table import Table

    from edged.rpc.messages import MemberStatus, StatusAnswer

WIDTH = 160  # columns where there is no terminal to ask


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object, for programs.")
@home_option
def command(as_json: bool) -> None:
    """Show the cluster's devices, the ring, and how fast it is."""
    from edged.frontdoor.client import open_front_door

    with open_front_door(current_settings().socket_path) as client:
        status = client.status()
    if as_json:
        click.echo(status.model_dump_json(indent=2))
    else:
        print_status(status)


def print_status(status: StatusAnswer) -> None:
    """The human form, on stdout."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDTH)
    for label, text in _facts(status):
        console.print(clean(f"{label:<9} {text}"), soft_wrap=True)
    console.print()
    console.print(_members(status))


def _facts(status: StatusAnswer) -> list[tuple[str, str]]:
    plan = status.plan
    facts = [("device", f"{status.name}, edged {status.version}"), ("state", status.state)]
    if status.problem:
        facts.append(("problem", status.problem))
    facts.append(("cluster", status.cluster[:16]))
    facts.append(("http", f"http://{status.http}/v1" if status.http else "off"))
    facts.append(("model", status.model or "none"))
    if plan is None:
        return facts
    facts.append(("ring", ring_text(status)))
    options = plan.context
    sequences = "1 sequence" if options.n_seq_max == 1 else f"{options.n_seq_max} sequences"
    context = f"{sequences} of {options.n_ctx} tokens, KV {options.kv_type}"
    facts.append(
        ("plan", f"epoch {plan.epoch} for {plan.objective}, {context}, activations {options.wire_type}")
    )
    if plan.note:
        facts.append(("note", plan.note))
    expected = "-" if plan.expected is None else f"{plan.expected.tpot_ms:.1f}"
    measured = "-" if status.measured_tpot_ms is None else f"{status.measured_tpot_ms:.1f}"
    facts.append(("speed", f"{measured} ms/token measured, {expected} expected"))
    facts.append(("requests", f"{status.active_requests} running, {status.waiting_requests} waiting"))
    names = device_names(status)
    facts += [
        ("left out", f"{names.get(out.device, out.device[:12])}: {out.reason}") for out in plan.left_out
    ]
    return facts


def _members(status: StatusAnswer) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("DEVICE", "ADDRESS", "STATE", "LAYERS", "MEMORY", "SEEN", "VERSION", ""):
        table.add_column(heading, overflow="fold")
    for member in status.members:
        table.add_row(*(clean(cell) for cell in _row(status, member)))
    return table


def _row(status: StatusAnswer, member: MemberStatus) -> tuple[str, ...]:
    plan = status.plan
    hops = [hop for hop in plan.hops if hop.device == member.device] if plan else []
    roles = [
        role
        for role, holds in (
            ("this device", member.device == status.device),
            ("coordinator", member.is_coordinator or member.device == status.coordinator),
            ("head", plan is not None and member.device == plan.head),
        )
        if holds
    ]
    return (
        member.name,
        member.address,
        member.state,
        ", ".join(layer_range(hop.first, hop.last) for hop in hops) or "-",
        size_text(member.memory_budget) if member.memory_budget else "-",
        "now" if member.last_seen_s < 5 else f"{member.last_seen_s:.0f} s ago",
        member.version,
        ", ".join(roles),
    )
