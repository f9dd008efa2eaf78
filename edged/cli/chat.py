"""`edged chat`: a conversation."""

from __future__ import annotations

import click

from edged.cli.options import current_settings, home_option


@click.command("chat")
@click.argument("model", required=False)
@home_option
def command(model: str | None) -> None:
    """Talk with the loaded model, or with MODEL. Ctrl-C stops an answer, Ctrl-D leaves; /help says more."""
    from edged.cli.repl import converse
    from edged.frontdoor.client import open_front_door

    settings = current_settings()
    with open_front_door(settings.socket_path) as client:
        converse(client, settings.home, model)
