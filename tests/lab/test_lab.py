"""The emulated home itself: what it promises to the tests that rely on it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.lab import Capture, Home, LabTimeoutError, LabUnavailableError
from tests.lab.memory import parse_size
from tests.lab.namespace import NAMED
from tests.lab.scripts import ANNOUNCE, BROWSE, READ, SERVE, python
from tests.lab.shell import LabError, sh
from tests.lab.sweep import sweep

pytestmark = pytest.mark.root


def test_devices_find_each_other_by_multicast(home: Home) -> None:
    a, b = home.device("a"), home.device("b")
    a.popen(python(ANNOUNCE, a.address)).wait_for_line("announced")
    assert b.run(python(BROWSE)).stdout.split() == ["here._edgedlab._tcp.local.", a.address]


def test_a_pulled_cable_cuts_traffic_until_it_is_back(home: Home) -> None:
    a, b = home.device("a"), home.device("b")
    a.popen(python(SERVE, "1000")).wait_for_line("listening")
    reach = ["timeout", "2", *python(READ, a.address)]
    assert b.run(reach).stdout.strip() == "1000"
    a.unplug()
    assert b.run(reach, check=False).returncode != 0
    a.plug()
    assert b.run(["timeout", "20", *python(READ, a.address)]).stdout.strip() == "1000"


def test_a_shaped_link_is_slower(home: Home) -> None:
    a, b = home.device("a", link="100mbit"), home.device("b")
    a.popen(python(SERVE, str(4_000_000))).wait_for_line("listening")
    began = time.monotonic()
    b.run(python(READ, a.address))
    assert time.monotonic() - began > 4_000_000 * 8 / 100e6 * 0.8  # the bits cannot pass sooner


def test_cores_and_memory_are_limited(home: Home) -> None:
    a = home.device("a", cores=(0,), memory="96M")
    assert a.run(["nproc"]).stdout.strip() == "1"
    assert a.run(python("b = bytearray(8 << 20); print(len(b))")).stdout.strip() == str(8 << 20)
    greedy = a.run(python("b = bytearray(512 << 20); print(len(b))"), check=False)
    assert greedy.returncode != 0
    assert a.memory is not None
    assert a.memory.peak > 8 << 20
    seen = a.run(["cat", "/proc/self/cgroup"]).stdout
    assert a.memory.path.name in seen


def test_a_small_disk_fills_up(home: Home) -> None:
    a = home.device("a", disk="1M")
    write = python("import os; open(os.environ['EDGED_HOME'] + '/f', 'wb').write(bytes(2 << 20))")
    failed = a.run(write, check=False)
    assert "No space left" in failed.stderr


def test_the_capture_sees_what_crosses_the_switch(home: Home) -> None:
    a, b = home.device("a"), home.device("b")
    a.popen(python(SERVE, "50")).wait_for_line("listening")
    with Capture(home) as capture:
        b.run(python(READ, a.address))
    assert capture.saw(b"x" * 50)
    assert not capture.saw(b"x" * 51)


def test_a_socket_is_made_inside_the_namespace(home: Home) -> None:
    a = home.device("a")
    a.popen(python(SERVE, "3")).wait_for_line("listening")
    with a.namespace.connect(9) as client:
        assert client.recv(10) == b"xxx"
    assert any(address.endswith(":9") for address in a.namespace.listening())
    with pytest.raises(ConnectionRefusedError):
        a.namespace.connect(10)


def test_waiting_for_a_line_ends_with_the_process(home: Home) -> None:
    process = home.device("a").popen(python("print('one'); print('two')"))
    assert process.wait_for_line("tw(o)")[1] == "o"
    with pytest.raises(LabTimeoutError, match="ended with 0"):
        process.wait_for_line("three")
    assert process.wait() == 0


def test_nothing_is_left_behind(home: Home) -> None:
    a = home.device("a", memory="64M", disk="1M")
    process = a.popen(["sh", "-c", "echo up; exec sleep 1000"])
    process.wait_for_line("up")
    assert process.pid in a.processes()
    names, group, root = [a.namespace.name, home.switch.name], a.memory, home.root
    home.close()
    assert not process.running
    assert group is not None
    assert not group.path.exists()
    assert not root.exists()
    assert all(not (NAMED / name).exists() for name in names)


CRASH = """
import os, signal, sys
from tests.lab import Home
home = Home()
a = home.device("a", memory="64M", disk="1M")
process = a.popen(["sh", "-c", "echo up; exec sleep 1000"])
process.wait_for_line("up")
print(home.name, process.pid, home.root, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_leftovers_of_a_killed_run_are_swept(home: Home) -> None:
    root = Path(__file__).parents[2]
    crashed = subprocess.run(
        [sys.executable, "-c", CRASH], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert crashed.returncode == -signal.SIGKILL, crashed.stderr
    name, pid, directory = crashed.stdout.split()
    removed = sweep()
    assert any(entry.startswith(name) for entry in removed)
    assert not Path(directory).exists()
    assert not any(path.name.startswith(name) for path in NAMED.iterdir())
    assert not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE


def test_sizes_and_mistakes() -> None:
    assert [parse_size(text) for text in ("5", "64K", "1.5M", "2G", "2GiB")] == [
        5,
        65536,
        3 * 2**19,
        2**31,
        2**31,
    ]
    with pytest.raises(LabError, match="not a size"):
        parse_size("much")
    with pytest.raises(LabUnavailableError, match="not installed"):
        sh("edged-lab-no-such-tool")
