"""What holds for all tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.lab import Home, LabUnavailableError

# A job in the background of a shell ignores SIGINT, and so would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def home() -> Iterator[Home]:
    """An emulated home; skipped where this machine cannot make one."""
    try:
        emulated = Home()
    except LabUnavailableError as missing:
        pytest.skip(str(missing))
    with emulated:
        yield emulated
