from __future__ import annotations

from pathlib import Path

import pytest

from edged.backend.native import Speed
from edged.device.speed_record import best_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "speed"


def test_a_busy_moment_does_not_make_a_device_slow(path: Path) -> None:
    assert best_of(Speed(10.0, 100.0), 4, path) == Speed(10.0, 100.0)
    assert best_of(Speed(3.0, 120.0), 4, path) == Speed(10.0, 120.0)
    assert best_of(Speed(11.0, 50.0), 4, path) == Speed(11.0, 120.0)


def test_a_record_of_other_threads_counts_for_nothing(path: Path) -> None:
    best_of(Speed(10.0, 100.0), 4, path)
    assert best_of(Speed(3.0, 30.0), 1, path) == Speed(3.0, 30.0)


def test_a_damaged_record_counts_for_nothing(path: Path) -> None:
    best_of(Speed(10.0, 100.0), 4, path)
    path.write_bytes(b"\xff" * 20)
    assert best_of(Speed(3.0, 30.0), 4, path) == Speed(3.0, 30.0)
    assert best_of(Speed(1.0, 10.0), 4, path) == Speed(3.0, 30.0)
