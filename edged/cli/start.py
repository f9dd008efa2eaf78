"""`edged start`: the daemon, in the foreground."""

from __future__ import annotations

import os
import signal
import sys
import threading

import click

from edged.cli.options import current_settings, home_option, setting_option
from edged.cli.terminal import clean

GRACE_S = 20.0  # for a daemon whose parent is gone; after that it is killed


@click.command("start")
@setting_option("name")
@home_option
@setting_option("port")
@setting_option("http")
@setting_option("join")
@setting_option("peer")
@setting_option("memory")
@setting_option("model")
@setting_option("parallel")
@setting_option("ctx")
@setting_option("threads")
@setting_option("kv_type")
@setting_option("flash_attention")
@setting_option("wire_type")
@setting_option("objective")
@setting_option("rounds")
@setting_option("residency")
@setting_option("log_level")
@click.option("--until-eof", is_flag=True, help="Stop when standard input ends, as when the parent dies.")
def command(until_eof: bool, **flags: object) -> None:
    """Start this device's daemon; Ctrl-C stops it.

    Every option but the last may also be given as a variable: EDGED_NAME, EDGED_PORT, EDGED_JOIN and so on.
    """
    settings = current_settings(**flags)
    from edged.daemon import run_daemon

    if until_eof:
        threading.Thread(target=_stop_at_eof, name="until-eof", daemon=True).start()
    run_daemon(settings, _say)


def _say(message: str) -> None:
    try:
        print(clean(message), flush=True)
    except OSError:
        # Whoever read our output left; the daemon lives on.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stop_at_eof() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)
