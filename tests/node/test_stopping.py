"""A daemon that is asked to stop before it is really there."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from edged.daemon import run_daemon
from edged.errors import EdgedError
from edged.settings import Settings, read_settings
from edged.store.catalogue import Catalogue
from edged.store.importer import import_model
from tests.models.architectures import Shape
from tests.models.random_models import write_random_model
from tests.threads import no_thread_left


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
    environment = {"EDGED_HOME": str(tmp_path), "EDGED_HTTP": "off", "EDGED_PORT": str(free_port())}
    run_daemon(read_settings(environment), said.append)
    assert said == ["stopped"]
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_daemon_that_measures_its_device_stops_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measuring(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(10)
        raise AssertionError("the measurement went on")

    monkeypatch.setattr("edged.daemon.measure", measuring)
    said: list[str] = []
    environment = {"EDGED_HOME": str(tmp_path), "EDGED_HTTP": "off", "EDGED_PORT": str(free_port())}
    run_daemon(read_settings(environment), said.append)
    assert said[-1] == "stopped"


def test_a_daemon_that_loads_a_model_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_random_model(tmp_path / "small.gguf", shape=Shape(n_layers=3))
    import_model(file, Catalogue(tmp_path / "home"))
    late = threading.Event()
    ends: list[str] = []

    def load(*arguments: object, **_options: object) -> object:
        progress = arguments[-1]
        assert callable(progress)
        os.kill(os.getpid(), signal.SIGTERM)
        watchdog = threading.Timer(20, late.set)
        watchdog.start()
        try:
            while not late.wait(0.01):
                progress(0.5)
        except EdgedError as error:
            ends.append(error.message)
            raise
        finally:
            watchdog.cancel()
        raise AssertionError("the load went on")

    monkeypatch.setattr("edged.device.layer_keeper.load_window", load)
    environment = {
        "EDGED_HOME": str(tmp_path / "home"),
        "EDGED_NAME": "nuc",
        "EDGED_MODEL": "small",
        "EDGED_HTTP": "off",
        "EDGED_THREADS": "1",
        "EDGED_PORT": str(free_port()),
    }
    said: list[str] = []
    with no_thread_left():
        run_daemon(read_settings(environment), said.append)
    assert ends == ["nuc is stopping"]
    assert said[-1] == "stopped"


def free_port() -> int:
    """One whose neighbour is likely free, too: joining is served there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
