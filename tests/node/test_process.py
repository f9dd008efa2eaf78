"""The daemon as a process: its home, its log, its descriptors."""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.errors import SettingsError
from edged.node.process import (
    StoppedEarly,
    StopRequest,
    allow_open_files,
    leave_early,
    log_to,
    only_one,
    stop_signals,
)
from edged.settings import Settings, read_settings

LOG = logging.getLogger("edged.test")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    before = logging.getLogger("edged").level
    yield tmp_path / "home"
    logging.getLogger("edged").setLevel(before)


def settings(home: Path) -> Settings:
    return read_settings({"EDGED_HOME": str(home)})


def rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_home_is_made_for_this_user_alone(home: Path) -> None:
    before = os.umask(0o002)
    try:
        with only_one(home), log_to(settings(home), print):
            LOG.warning("hello")
    finally:
        os.umask(before)
    assert rights(home) == 0o700
    assert rights(home / "daemon.log") == 0o600
    assert "hello" in (home / "daemon.log").read_text()


def test_a_log_that_others_could_read_is_narrowed(home: Path) -> None:
    home.mkdir()
    (home / "daemon.log").touch(0o644)
    with log_to(settings(home), print):
        LOG.warning("hello")
    assert rights(home / "daemon.log") == 0o600


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775])
def test_a_home_that_others_can_write_to_is_refused(home: Path, mode: int) -> None:
    home.mkdir()
    home.chmod(mode)
    with (
        pytest.raises(SettingsError, match=f"others can write to {home}: run `chmod go-w {home}`") as caught,
        only_one(home),
    ):
        pass
    assert "\n" not in caught.value.message
    assert list(home.iterdir()) == []
    assert rights(home) == mode


def test_a_home_that_others_may_only_read_keeps_its_rights(home: Path) -> None:
    home.mkdir()
    home.chmod(0o755)
    with only_one(home):
        assert rights(home) == 0o755
    assert rights(home / "run") == 0o700


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_told_once_and_without_a_traceback(
    home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir()
    (home / "daemon.log").symlink_to("/dev/full")
    monkeypatch.setattr(os, "fchmod", lambda *_: None)  # a device of the system's keeps its rights
    said: list[str] = []
    with log_to(settings(home), said.append):
        for number in range(20):
            LOG.warning("record %d", number)
    printed = capfd.readouterr()
    assert printed.err == printed.out == ""
    why = os.strerror(errno.ENOSPC)
    assert said == [f"the log cannot be written to {home / 'daemon.log'}: {why}; going on without it"]


def test_libraries_speak_to_the_log_and_not_to_the_terminal(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    home.mkdir()
    with log_to(settings(home), print):
        logging.getLogger("asyncio").error("a fault in a loop")
    assert "a fault in a loop" in (home / "daemon.log").read_text()
    assert capfd.readouterr().err == ""


def test_a_fault_that_ends_a_thread_is_in_the_log(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    home.mkdir()
    with log_to(settings(home), print):
        thread = threading.Thread(target=lambda: {}["nothing"], name="edged-some-part")
        thread.start()
        thread.join()
    logged = (home / "daemon.log").read_text()
    assert "edged-some-part ended" in logged
    assert "KeyError" in logged
    assert capfd.readouterr().err == ""


def test_the_limit_of_open_files_is_raised() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lower = before[0] - 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (lower, before[1]))
    try:
        allow_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > lower
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_signal_that_comes_while_the_wait_begins_ends_it() -> None:
    """A threading.Event would be a trap: its `set` waits for the lock that the interrupted `wait` holds."""
    for delay in range(200):
        with StopRequest() as stop, stop.on_signals():
            timer = threading.Timer(delay * 1e-5, os.kill, (os.getpid(), signal.SIGTERM))
            timer.start()
            stop.wait()
            timer.join()


def test_a_signal_that_another_thread_receives_ends_the_wait() -> None:
    """The kernel hands a process's signal to any thread that does not block it."""
    with StopRequest() as stop, stop.on_signals():
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            stop.wait()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        timer.join()


def test_a_second_signal_does_not_break_off_what_the_first_one_began() -> None:
    cleaned = False
    with pytest.raises(StoppedEarly), stop_signals(leave_early()):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            cleaned = True
    assert cleaned
