"""However a daemon is asked to stop, nothing of it stays."""

from __future__ import annotations

import pytest

from tests.acceptance.cluster import FLAGS, MODEL, Cluster, form_cluster
from tests.lab import Daemon, Device, Home, edged_command

STORY = ("Write a long story about a lighthouse.", "--temperature", "0", "--max-tokens", "1500")
LEFTOVERS = (".tmp", ".partial", ".sock", ".pid", ".part")


@pytest.fixture(scope="module")
def pair(shared_home: Home) -> Cluster:
    """Two devices in one ring."""
    return form_cluster(shared_home, ("head", "attic"))


def assert_nothing_left(daemon: Daemon) -> None:
    device = daemon.place
    assert isinstance(device, Device)
    assert device.processes() == []
    assert device.namespace.listening() == []
    assert not list(device.tmp.iterdir()), "temporary files stay"
    assert not list((device.home / "store" / "scratch").iterdir())
    strange = [
        str(path.relative_to(device.home))
        for path in device.home.rglob("*")
        if path.is_socket() or path.is_fifo() or path.suffix in LEFTOVERS
    ]
    assert strange == []


@pytest.mark.parametrize("how", ["interrupt", "terminate", "stop"])
def test_an_idle_daemon_leaves_nothing(home: Home, how: str) -> None:
    device = home.device("alone")
    daemon = device.start_daemon(*FLAGS)
    daemon.wait_started()
    assert device.processes()
    assert device.namespace.listening()
    if how == "interrupt":
        daemon.process.interrupt()
    elif how == "terminate":
        daemon.process.terminate()
    else:
        device.edged("stop")
    assert daemon.process.wait(30) == 0
    assert "Traceback" not in daemon.log
    assert_nothing_left(daemon)


def test_a_daemon_stopped_while_it_starts_leaves_nothing(home: Home) -> None:
    daemon = home.device("alone").start_daemon(*FLAGS)
    daemon.process.wait_for_line(".")  # its first words
    daemon.process.terminate()
    daemon.process.wait(30)
    assert "Traceback" not in daemon.log
    device = daemon.place
    assert isinstance(device, Device)
    assert device.processes() == []
    assert device.namespace.listening() == []


def test_a_ring_stopped_in_the_middle_of_an_answer_leaves_nothing(pair: Cluster) -> None:
    """The head and its client first, then the worker."""
    place = pair.head.place
    client = place.popen([*edged_command(), "run", MODEL, *STORY])
    pair.head.wait_until(lambda status: status.active_requests == 1, "running request")
    pair.head.process.interrupt()
    assert pair.head.process.wait(30) == 0
    assert client.wait(30) != 0
    assert "Traceback" not in client.text
    pair.workers[0].process.terminate()
    assert pair.workers[0].process.wait(30) == 0
    for daemon in pair.daemons:
        assert "Traceback" not in daemon.log
        assert_nothing_left(daemon)


def test_a_killed_daemon_does_not_hinder_the_next(home: Home) -> None:
    device = home.device("alone")
    daemon = device.start_daemon(*FLAGS)
    identity = daemon.wait_started().device
    daemon.process.kill()
    again = device.start_daemon(*FLAGS)
    assert again.wait_started().device == identity
    assert again.stop() == 0
    assert_nothing_left(again)
