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
    say(f"For one device, within {_duration(answer.expires_in_s)}. On that device, run:")
    say(f"  edged start --join {answer.token}")
    click.echo(answer.token)


def _duration(seconds: int) -> str:
    hours, minutes = divmod(max(1, seconds // 60), 60)
    return f"{hours} hours" if hours > 1 and not minutes else f"{hours * 60 + minutes} minutes"
