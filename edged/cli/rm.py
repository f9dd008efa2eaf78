"""`edged rm`: a model leaves this device's store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edged.cli.options import current_settings, home_option
from edged.cli.terminal import say
from edged.errors import NotRunningError, StoreError

if TYPE_CHECKING:
    from edged.settings import Settings


@click.command("rm")
@click.argument("model")
@home_option
def command(model: str) -> None:
    """Remove MODEL from this device's disk."""
    from edged.cli.progress import size_text
    from edged.store.catalogue import Catalogue

    settings = current_settings()
    catalogue = Catalogue(settings.home)
    manifest = catalogue.find(model)
    if manifest.id == _loaded(settings):
        raise StoreError(f"{manifest.name} is loaded; load another model first, or stop the daemon")
    freed = catalogue.remove(manifest.id)
    say(f"removed {manifest.name}; {size_text(freed)} are free again.")


def _loaded(settings: Settings) -> str:
    """Id of the model that the daemon here runs; "" where none runs."""
    from edged.frontdoor.client import open_front_door

    try:
        with open_front_door(settings.socket_path) as client:
            plan = client.status().plan
    except NotRunningError:
        return ""
    return plan.model if plan is not None else ""
