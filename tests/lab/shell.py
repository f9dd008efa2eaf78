"""Running the system's own tools (`ip`, `tc`, ...) with errors that say what went wrong."""

from __future__ import annotations

import subprocess


class LabError(Exception):
    """The emulated home could not be built, or did not behave as a test awaited."""


class LabUnavailableError(LabError):
    """This machine cannot emulate a home (no root, no namespaces, a tool is missing): skip, not fail."""


class LabTimeoutError(LabError):
    """What a test waited for did not happen in time."""


def sh(*command: str) -> str:
    """Runs a short system command and returns its standard output; LabError when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        raise LabUnavailableError(f"{command[0]} is not installed") from None
    if done.returncode != 0:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def attempt(*command: str) -> bool:
    """As `sh`, for cleaning up: whether it worked."""
    try:
        sh(*command)
    except LabError:
        return False
    return True
