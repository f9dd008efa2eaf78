"""The daemon as a process: one per home directory, stopped by SIGINT and SIGTERM."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Self

from edged.errors import AlreadyRunningError
from edged.private_file import home_directory, private_directory
from edged.settings import Settings

log = logging.getLogger(__name__)

LOG_BYTES = 2 * 2**20  # of each of two files
OPEN_FILES = 65536  # a limit of the system's may be without end, which not every system lets us ask for


class StopRequest:
    """The wish that the daemon ends, made by `set` or by a signal. Holds two descriptors.

    Waiting is reading from a pipe, into which a signal writes as it arrives: the kernel may hand it to any
    thread, and Python's own handler runs only once the main thread wakes. `set` is safe in a signal's
    handler, which threading.Event's is not.
    """

    def __init__(self) -> None:
        self._ear, self._bell = os.pipe()
        os.set_blocking(self._bell, False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._ear)
        os.close(self._bell)

    def set(self) -> None:
        with contextlib.suppress(BlockingIOError):  # the pipe is full of wishes
            os.write(self._bell, b"!")

    def wait(self) -> None:
        """Until the first wish; in one thread only."""
        os.read(self._ear, 1)

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM are wishes while the context lasts. In the main thread only."""
        with stop_signals(self.set):
            before = signal.set_wakeup_fd(self._bell, warn_on_full_buffer=False)
            try:
                yield
            finally:
                signal.set_wakeup_fd(before)


class StoppedEarly(BaseException):
    """The user wants an end before there is anything to close."""


def leave_early() -> Callable[[], None]:
    """What signals do while the daemon waits for others and holds nothing: the wait ends at once.

    Only the first one raises; a second one would break off the cleaning up after the first.
    """
    leaving = False

    def leave() -> None:
        nonlocal leaving
        if not leaving:
            leaving = True
            raise StoppedEarly

    return leave


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
    """Holds the lock of the home directory. Raises AlreadyRunningError if another daemon does,
    SettingsError if others may write to that directory.
    """
    home_directory(home)
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


def allow_open_files() -> None:
    """As many descriptors as the system grants: every link, part of a model and connection takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as error:
        log.warning("only %d files may be open at once: %s", soft, error)


class _LogFile(RotatingFileHandler):
    """0600, and quiet where it cannot write: the daemon goes on, and its terminal is told once."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        super().__init__(path, maxBytes=LOG_BYTES, backupCount=1, delay=True)
        self._say = say
        self._failing = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - logging's name
        if self._failing:
            return
        self._failing = True
        error = sys.exc_info()[1]
        why = error.strerror if isinstance(error, OSError) else None
        self._say(f"the log cannot be written to {self.baseFilename}: {why or error}; going on without it")

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.fchmod(descriptor, 0o600)  # one that an earlier version made
        return os.fdopen(descriptor, "a", encoding="utf-8", errors="replace")


def _log_fault(fault: threading.ExceptHookArgs) -> None:
    """What ends a thread is a fault of ours: its traceback is for the log, not for the terminal."""
    name = fault.thread.name if fault.thread is not None else "a thread"
    exc_info = (fault.exc_type, fault.exc_value or fault.exc_type(), fault.exc_traceback)
    log.error("%s ended by a fault in edged itself", name, exc_info=exc_info)


@contextmanager
def log_to(settings: Settings, say: Callable[[str], None]) -> Iterator[None]:
    """The log goes to HOME/daemon.log; the terminal gets only what a person wants to know.

    Where the log cannot be written, `say` hears so once.
    """
    handler = _LogFile(settings.home / "daemon.log", say)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    # At the root, or what libraries have to say (asyncio, zeroconf) would land on the terminal.
    logging.getLogger().addHandler(handler)
    logging.getLogger("edged").setLevel(settings.log_level.upper())
    hook, threading.excepthook = threading.excepthook, _log_fault
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would note every request of a joining device
    try:
        yield
    finally:
        threading.excepthook = hook
        logging.getLogger().removeHandler(handler)
        with contextlib.suppress(OSError):  # what it could not write before, it cannot write now
            handler.close()
