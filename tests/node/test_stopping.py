"""A daemon that is asked to stop before it is really there."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from edged.daemon import run_daemon
from edged.settings import Settings, read_settings


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_daemon_that_looks_for_its_founder_stops_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def search(_settings: Settings, _say: object) -> None:
        os.kill(os.getpid(), number)
        threading.Event().wait(10)
        raise AssertionError("the search went on")

    monkeypatch.setattr("edged.daemon.settle", search)
    said: list[str] = []
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    run_daemon(read_settings({"EDGED_HOME": str(tmp_path)}), said.append)
    assert said == ["stopped"]
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before
