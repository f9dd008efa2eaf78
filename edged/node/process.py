"""The daemon as a process: one per home directory, stopped by SIGINT and SIGTERM."""

from __future__ import annotations

import fcntl
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path

from edged.errors import AlreadyRunningError
from edged.private_file import private_directory
from edged.settings import Settings

LOG_BYTES = 2 * 2**20  # of each of two files


class StoppedEarly(BaseException):
    """The user wants an end before there is anything to close."""


def leave_early() -> None:
    """What a signal does while the daemon waits for others and holds nothing: the wait ends at once."""
    raise StoppedEarly


@contextmanager
def stop_signals(then: Callable[[], None]) -> Iterator[None]:
    """SIGINT and SIGTERM call `then` while the context lasts. In the main thread only."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: then()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Holds the lock of the home directory. Raises AlreadyRunningError if another daemon does."""
    folder = home / "run"
    private_directory(folder)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise AlreadyRunningError(
                f"a daemon runs in {home} already; stop it with `edged stop`, or choose another --home"
            ) from None
        yield


@contextmanager
def log_to(settings: Settings) -> Iterator[None]:
    """The log goes to HOME/daemon.log; the terminal gets only what a person wants to know."""
    handler = RotatingFileHandler(settings.home / "daemon.log", maxBytes=LOG_BYTES, backupCount=1, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("edged")
    logger.addHandler(handler)
    logger.setLevel(settings.log_level.upper())
    logger.propagate = False
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would note every request of a joining device
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
