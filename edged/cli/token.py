"""`edged token`: what another device needs to join."""

from __future__ import annotations

import click

from edged.cli.options import current_settings, home_option
from edged.cli.terminal import say


@click.command("token")
@home_option
def command() -> None:
    """Print a token that lets one more device join this cluster."""
    from edged.frontdoor.client import open_front_door

    with open_front_door(current_settings().socket_path) as client:
        answer = client.token()
    minutes = max(1, answer.expires_in_s // 60)
    say(f"For one device, within {minutes} minutes. On that device, run:")
    say(f"  edged start --join {answer.token}")
    click.echo(answer.token)
