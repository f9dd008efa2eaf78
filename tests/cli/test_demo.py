"""The demo, for real: daemons as processes, the bundled model, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from edged.cli import demo_cluster
from edged.cli.demo import bundled_model
from edged.cli.demo_cluster import DemoCluster, DemoDevice, free_ports

PATIENCE_S = 240  # to give up, not to measure
COMMAND = [sys.executable, "-m", "edged", "demo", "--devices", "2", "--max-tokens", "4", "--temperature", "0"]


def processes_in(place: Path) -> list[psutil.Process]:
    """Processes that have `place` on their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            if (
                any(str(place) in word for word in process.cmdline())
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(process)
        except psutil.Error:
            continue
    return found


def assert_nothing_left(place: Path) -> None:
    _, alive = psutil.wait_procs(processes_in(place), timeout=30)
    assert alive == []
    assert list(place.iterdir()) == []


@contextmanager
def demo(place: Path) -> Iterator[subprocess.Popen[str]]:
    """A demo that keeps its temporary files in `place`."""
    with subprocess.Popen(
        COMMAND,
        env={**os.environ, "TMPDIR": str(place)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_line(process: subprocess.Popen[str], text: str) -> None:
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if text in line:
            return
    raise AssertionError(f"the demo never said {text!r}: {seen}")


@pytest.mark.model
def test_two_devices_answer(home: Path) -> None:
    with demo(home) as process:
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert "2 devices have found each other" in err
    ring = next(line for line in err.splitlines() if line.startswith("ring: "))
    assert "demo-1 0-" in ring
    assert "demo-2 " in ring
    assert out.strip()
    assert not any(line in out for line in err.splitlines())
    assert_nothing_left(home)


@pytest.mark.model
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_takes_everything_down(home: Path, number: signal.Signals, code: int) -> None:
    with demo(home) as process:
        wait_for_line(process, "starting demo-2")
        assert processes_in(home)
        process.send_signal(number)
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == code
        assert_nothing_left(home)


@pytest.mark.model
def test_daemons_do_not_outlive_a_killed_demo(home: Path) -> None:
    with demo(home) as process:
        wait_for_line(process, "starting demo-2")
        daemons = processes_in(home)
        assert daemons
        process.kill()
        _, alive = psutil.wait_procs(daemons, timeout=60)
        assert alive == []


@pytest.mark.model
def test_devices_that_do_not_find_each_other_are_given_an_address(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real = DemoDevice.start

    def start(device: DemoDevice, token: str | None = None, peer: str | None = None) -> None:
        """Without an address it ends, as it does where multicast is blocked."""
        real(device, "spoilt" if token is not None and peer is None else token, peer)

    monkeypatch.setattr(DemoDevice, "start", start)
    monkeypatch.setattr("tempfile.tempdir", str(home))
    with DemoCluster(2, 2) as cluster:
        cluster.start(bundled_model())
        with cluster.front_door() as client:
            assert sorted(member.name for member in client.status().members) == ["demo-1", "demo-2"]
    assert "trying again with an address" in capfd.readouterr().err
    assert_nothing_left(home)


def test_a_daemon_that_hangs_is_killed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(home))
    monkeypatch.setattr(demo_cluster, "STOP_S", 1.0)
    with DemoCluster(1, 1) as cluster:
        device = cluster.devices[0]
        device.start()
        (daemon,) = processes_in(home)
        daemon.suspend()
    assert_nothing_left(home)


def test_a_daemon_that_ends_is_reported_with_its_last_words(home: Path) -> None:
    device = DemoDevice(home, "demo-1", 1)
    device.home.mkdir()
    (device.home / "store").touch()  # where a directory should be
    device.start()
    device.wait(float("inf"))
    with pytest.raises(demo_cluster.DaemonError, match=r"demo-1 has ended \(exit code 1\): edged: "):
        device.is_up()


def test_ports_come_in_pairs() -> None:
    assert 1024 <= free_ports() < 65535
