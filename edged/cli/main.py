"""The command `edged`: finds the verb, and turns every error into one line and an exit code.

Exit codes: 0 done, 1 an EdgedError, 2 a command line that makes no sense, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from edged import __version__
from edged.cli.options import home_option
from edged.cli.terminal import say
from edged.errors import EdgedError

VERBS = {
    "start": "start",
    "stop": "stop",
    "status": "status",
    "plan": "plan",
    "token": "token",
    "profile": "profile",
    "models": "models",
    "import": "import_model",
    "pull": "pull",
    "verify": "verify",
    "rm": "rm",
    "run": "run",
    "chat": "chat",
    "demo": "demo",
}
"""Module in edged.cli per verb. A verb's module is imported only when it is called or its help is shown."""


class Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"edged.cli.{VERBS[cmd_name]}").command
        return command


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edged", message="%(prog)s %(version)s")
@home_option
def cli() -> None:
    """The machines of one home hold one language model together.

    Start a daemon on each device with `edged start`, then talk to any of them with `edged chat`.
    To try it on this machine alone: `edged demo`.
    """


def main(args: Sequence[str] | None = None) -> NoReturn:
    # gRPC's core writes to the terminal what its callers are told anyway; it reads this when it is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    sys.exit(_exit_code(args))


def _exit_code(args: Sequence[str] | None) -> int:
    try:
        outcome = cli.main(args=args, prog_name="edged", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BrokenPipeError:
        # The reader of our output left. Python would complain once more while it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("EDGED_LOG_LEVEL") == "debug" and not isinstance(error, EdgedError):
            raise
        say(f"edged: {_one_line(error)}")
        return 1
    return outcome if isinstance(outcome, int) else 0


def _one_line(error: Exception) -> str:
    if isinstance(error, EdgedError):
        line = error.message
    elif isinstance(error, OSError):
        line = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    else:
        line = f"a fault in edged itself: {type(error).__name__}: {error} (EDGED_LOG_LEVEL=debug shows where)"
    return " ".join(line.split())
