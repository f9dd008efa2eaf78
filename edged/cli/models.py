"""`edged models`: what there is to load."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from edged.cli.options import current_settings, home_option
from edged.cli.terminal import say
from edged.errors import NotRunningError

if TYPE_CHECKING:
    from edged.rpc.messages import ModelSummary
    from edged.settings import Settings


@click.command("models")
@click.option("--json", "as_json", is_flag=True, help="As a JSON list, for programs.")
@home_option
def command(as_json: bool) -> None:
    """List the models that are known here, and how much of each this device holds."""
    settings = current_settings()
    found = _models(settings)
    for line in _damaged(settings):
        say(line)
    if as_json:
        click.echo(json.dumps([model.model_dump(mode="json") for model in found], indent=2))
        return
    if not found:
        click.echo("no models yet; get one with: edged import FILE, or: edged pull NAME", err=True)
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from edged.cli.progress import size_text
    from edged.cli.terminal import clean

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("MODEL", "ID", "KIND", "LAYERS", "CONTEXT", "SIZE", "HELD HERE", ""):
        table.add_column(heading, overflow="fold")
    for model in found:
        cells = (
            model.name,
            model.id[:12],
            model.architecture,
            str(model.n_layers),
            str(model.n_ctx_train),
            size_text(model.size),
            size_text(model.held),
            "loaded" if model.loaded else "",
        )
        table.add_row(*(clean(cell) for cell in cells))
    Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160).print(table)


def _models(settings: Settings) -> tuple[ModelSummary, ...]:
    """From the daemon, or from the disk where none runs."""
    from edged.frontdoor.client import open_front_door
    from edged.rpc.messages import ModelSummary
    from edged.store.catalogue import Catalogue

    try:
        with open_front_door(settings.socket_path) as client:
            return client.models()
    except NotRunningError:
        pass
    if not (settings.home / "store").is_dir():
        return ()  # a look should make no directories
    catalogue = Catalogue(settings.home)
    return tuple(
        ModelSummary(
            name=manifest.name,
            id=manifest.id,
            architecture=manifest.architecture,
            n_layers=manifest.n_layers,
            n_ctx_train=manifest.n_ctx_train,
            size=sum(part.size for part in manifest.parts),
            held=catalogue.held(manifest),
            created=catalogue.created(manifest),
        )
        for manifest in catalogue.models()
    )


def _damaged(settings: Settings) -> tuple[str, ...]:
    from edged.store.catalogue import Catalogue

    return Catalogue(settings.home).damaged() if (settings.home / "store").is_dir() else ()
