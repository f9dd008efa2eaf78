"""`edged profile`: how fast this device is, and what it has to give."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from edged.cli.options import current_settings, home_option, setting_option
from edged.cli.progress import progress_view, size_text
from edged.cli.terminal import clean
from edged.errors import EdgedError

if TYPE_CHECKING:
    from rich.table import Table

    from edged.planning.profile import DeviceProfile
    from edged.settings import Settings

WIDTH = 120  # columns where there is no terminal to ask


@click.command("profile")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object, for programs.")
@click.option("--fresh", is_flag=True, help="Measure again, and forget what was measured before.")
@setting_option("name")
@home_option
@setting_option("memory")
@setting_option("threads")
def command(as_json: bool, fresh: bool, **flags: object) -> None:
    """Show how fast this device computes and reads, and how much memory it can give.

    It is measured once, and again when the hardware, the limits or the version of edged change. Whatever else
    runs meanwhile makes the figures too low.
    """
    device = _profile(current_settings(**flags), fresh)
    if as_json:
        click.echo(device.model_dump_json(indent=2))
    else:
        print_profile(device)


def _profile(settings: Settings, fresh: bool) -> DeviceProfile:
    from edged.cluster import identity
    from edged.device.local_device import measure, profile, remembered
    from edged.private_file import home_directory

    home_directory(settings.home)
    known = None if fresh else remembered(settings.threads, settings.memory, settings.home)
    if known is None:
        with progress_view() as view:
            known = measure(settings.threads, settings.memory, settings.home, view.show, afresh=fresh)
    own = identity.load(settings.home)
    device = profile(
        device=settings.name if own is None else own.device,
        name=settings.name,
        home=settings.home,
        threads=settings.threads,
        measured=known,
        cap=settings.memory,
        held=0,
    )
    budget = None if settings.memory is not None else _daemons_budget(settings)
    return device if budget is None else device.model_copy(update={"memory_budget": budget})


def _daemons_budget(settings: Settings) -> int | None:
    """What a daemon that runs here may hold: it counts what it holds already. None where none runs."""
    from edged.frontdoor.client import open_front_door

    try:
        with open_front_door(settings.socket_path) as client:
            status = client.status()
    except EdgedError:
        return None
    return next((one.memory_budget for one in status.members if one.device == status.device), None) or None


def print_profile(device: DeviceProfile) -> None:
    """The human form, on stdout."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDTH)
    for label, text in _facts(device):
        console.print(clean(f"{label:<9} {text}"), soft_wrap=True)
    console.print()
    console.print(_speeds(device))


def _facts(device: DeviceProfile) -> list[tuple[str, str]]:
    disk = "not measured"
    if device.disk_sequential:
        disk = f"{_rate(device.disk_sequential)} in sequence, {_rate(device.disk_random)} at random"
    facts = [
        ("device", device.name),
        ("system", device.system),
        ("threads", str(device.threads)),
        ("memory", f"{size_text(device.memory_budget)} for models now, {_rate(device.cpu.memory_bandwidth)}"),
    ]
    for gpu in device.gpus:
        memory = "the device's own" if gpu.shares_memory else f"{size_text(gpu.memory_budget)} for models now"
        facts.append((gpu.name, f"{gpu.description}: {memory}, {_rate(gpu.memory_bandwidth)}"))
    facts.append(("disk", f"{size_text(device.disk_free)} free, {disk}"))
    return facts


def _speeds(device: DeviceProfile) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("WEIGHTS")
    for processor in device.processors:
        table.add_column(clean(f"{processor.name}, ONE TOKEN"), justify="right")
        table.add_column(clean(f"{processor.name}, PROMPT"), justify="right")
    types = dict.fromkeys(speed.type for processor in device.processors for speed in processor.speeds)
    for ggml_type in types:
        cells = [ggml_type]
        for processor in device.processors:
            speed = next((speed for speed in processor.speeds if speed.type == ggml_type), None)
            cells.append("-" if speed is None else _rate(speed.decode))
            cells.append("-" if speed is None else f"{speed.prefill / 1e9:,.0f} GFLOP/s")
        table.add_row(*cells)
    return table


def _rate(bytes_per_s: float) -> str:
    if bytes_per_s < 1e9:
        return f"{bytes_per_s / 1e6:.0f} MB/s"
    return f"{bytes_per_s / 1e9:.1f} GB/s"
