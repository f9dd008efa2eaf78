from __future__ import annotations

from pathlib import Path

import pytest

from edged.device.speed_record import MOST_RECORDS, Measured, SpeedRecord
from edged.planning.profile import ProcessorProfile, TypeSpeed


def measured(of: str = "here", decode: float = 10.0, prefill: float = 100.0, disk: float = 5.0) -> Measured:
    cpu = ProcessorProfile(
        name="CPU",
        kind="cpu",
        speeds=(TypeSpeed(type="q4_0", decode=decode, prefill=prefill),),
        memory_bandwidth=decode,
    )
    return Measured(of=of, processors=(cpu,), disk_sequential=disk, disk_random=disk / 2)


@pytest.fixture
def record(tmp_path: Path) -> SpeedRecord:
    return SpeedRecord(tmp_path)


def test_a_busy_moment_does_not_make_a_device_slow() -> None:
    best = measured(decode=3.0, prefill=120.0, disk=9.0).with_best_of(measured(decode=10.0, prefill=90.0))
    assert best.processors[0].speeds == (TypeSpeed(type="q4_0", decode=10.0, prefill=120.0),)
    assert best.processors[0].memory_bandwidth == 10.0
    assert (best.disk_sequential, best.disk_random) == (9.0, 4.5)


def test_after_some_measurements_the_best_is_certain() -> None:
    assert not measured().is_certain
    assert not measured().with_best_of(measured()).is_certain
    assert measured().with_best_of(measured()).with_best_of(measured()).is_certain


def test_it_is_remembered_for_the_same_circumstances_only(record: SpeedRecord) -> None:
    assert record.find("here") is None
    record.keep(measured())
    assert record.find("here") == measured()
    assert record.find("elsewhere") is None
    record.keep(measured(of="elsewhere", decode=1.0))
    assert record.find("here") == measured()
    record.keep(measured(decode=20.0))
    assert record.find("here") == measured(decode=20.0)
    assert record.find("elsewhere") == measured(of="elsewhere", decode=1.0)


def test_the_oldest_is_forgotten(record: SpeedRecord) -> None:
    for number in range(MOST_RECORDS + 1):
        record.keep(measured(of=str(number)))
    assert record.find("0") is None
    assert all(record.find(str(number)) for number in range(1, MOST_RECORDS + 1))


def test_a_damaged_file_counts_for_nothing(record: SpeedRecord, tmp_path: Path) -> None:
    record.keep(measured())
    (tmp_path / "run" / "profile").write_bytes(b"\xff" * 20)
    assert record.find("here") is None
    record.keep(measured())
    assert record.find("here") == measured()
