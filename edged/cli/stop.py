"""`edged stop`: end the daemon of this home directory."""

from __future__ import annotations

import click

from edged.cli.options import current_settings, home_option
from edged.cli.terminal import say
from edged.errors import DaemonError

STOP_S = 30.0


@click.command("stop")
@home_option
def command() -> None:
    """Stop this device's daemon and wait until it has ended."""
    import psutil

    from edged.frontdoor.client import open_front_door

    settings = current_settings()
    with open_front_door(settings.socket_path) as client:
        pid = client.stop().pid
    try:
        psutil.Process(pid).wait(STOP_S)
    except psutil.NoSuchProcess:
        pass
    except psutil.TimeoutExpired:
        raise DaemonError(
            f"the daemon still runs after {STOP_S:.0f} seconds; to force it: kill -9 {pid}"
        ) from None
    say("edged has stopped.")
