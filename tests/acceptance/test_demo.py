"""`edged demo`: a whole cluster on one device, and nothing of it afterwards."""

from __future__ import annotations

import psutil

from tests.lab import Device, Home, edged_command

STORY = ("--devices", "2", "--prompt", "Tell a long story.", "--max-tokens", "900")


def assert_gone(device: Device) -> None:
    assert device.processes() == []
    assert device.namespace.listening() == []


def test_it_answers_and_leaves_nothing(home: Home) -> None:
    device = home.device("alone")
    flags = ("--prompt", "What is the capital of France?", "--max-tokens", "8", "--temperature", "0")
    done = device.edged("demo", "--devices", "3", *flags, timeout=120)
    assert done.stdout.strip()
    assert "Traceback" not in done.stderr
    assert_gone(device)
    assert not list(device.tmp.iterdir()), "temporary files stay"


def test_interrupted_it_leaves_nothing(home: Home) -> None:
    device = home.device("alone")
    demo = device.popen([*edged_command(), "demo", *STORY])
    demo.wait_for_line("found each other")
    demo.interrupt()
    assert demo.wait(60) != 0
    assert "Traceback" not in demo.text
    assert_gone(device)
    assert not list(device.tmp.iterdir()), "temporary files stay"


def test_killed_its_daemons_end_by_themselves(home: Home) -> None:
    device = home.device("alone")
    demo = device.popen([*edged_command(), "demo", *STORY])
    demo.wait_for_line("found each other")
    orphans = [psutil.Process(pid) for pid in device.processes() if pid != demo.pid]
    assert len(orphans) >= 2
    demo.kill()
    _, alive = psutil.wait_procs(orphans, timeout=40)
    assert alive == []
    assert_gone(device)
