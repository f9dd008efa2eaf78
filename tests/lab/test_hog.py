"""The program that takes memory and gives it back."""

from __future__ import annotations

import sys

import psutil
import pytest

from tests.lab import Home, hog

MIB = 2**20


@pytest.mark.root
def test_a_hog_takes_memory_of_its_device_and_gives_it_back(home: Home) -> None:
    a = home.device("a", memory="256M")
    assert a.memory is not None
    process = a.popen([sys.executable, hog.__file__, str(96 * MIB), str(8 * MIB), "0.005", "1"])
    held = []
    mark = 0
    for _ in range(6):
        match = process.wait_for_line(r"holds (\d+)", after=mark)
        mark = process.mark()
        held.append((int(match[1]), psutil.Process(process.pid).memory_info().rss))
    assert max(bytes_held for bytes_held, _ in held) > min(bytes_held for bytes_held, _ in held)
    assert a.memory.peak >= max(bytes_held for bytes_held, _ in held)
    assert a.memory.oom_kills == 0
    process.terminate()
    assert process.wait() != 0


def test_memory_taken_is_really_there() -> None:
    before = psutil.Process().memory_info().rss
    memory = hog.take(32 * MIB)
    assert psutil.Process().memory_info().rss - before > 24 * MIB
    memory.close()
    assert psutil.Process().memory_info().rss - before < 24 * MIB
