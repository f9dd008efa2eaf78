from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest

from edged.device import disk
from edged.device.disk import DiskSpeed, measure_disk

MIB = 2**20


def open_descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_an_empty_store_is_measured_and_nothing_is_left(tmp_path: Path) -> None:
    steps: list[int] = []
    speed = measure_disk(tmp_path, 16 * MIB, lambda: steps.append(1))
    assert speed.sequential > 0
    assert speed.random > 0
    assert len(steps) == 2
    assert names(tmp_path) == []


def test_what_is_in_the_store_is_read_and_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = tmp_path / "store" / "part"
    part.parent.mkdir()
    body = os.urandom(40 * MIB)
    part.write_bytes(body)

    def refuse(*_: object) -> None:
        raise AssertionError("something was written")

    monkeypatch.setattr(os, "writev", refuse)
    speed = measure_disk(tmp_path)
    assert speed.sequential > 0
    assert speed.random > 0
    assert part.read_bytes() == body


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("moment", ["writev", "preadv"])
def test_an_interruption_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException], moment: str
) -> None:
    before = open_descriptors()

    def interrupted(*_: object) -> int:
        assert names(tmp_path) == []  # it has no name even now
        raise interruption

    monkeypatch.setattr(os, moment, interrupted)
    with pytest.raises(interruption):
        measure_disk(tmp_path, 16 * MIB)
    assert names(tmp_path) == []
    assert open_descriptors() == before


def test_a_full_disk_is_not_filled_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = disk.LEAST * disk.FREE_SHARE - 1

    written: list[int] = []
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda *args: written.append(1) or real(*args))
    monkeypatch.setattr(disk.psutil, "disk_usage", lambda _: Usage)
    assert measure_disk(tmp_path) == DiskSpeed(0.0, 0.0)
    Usage.free += 1
    assert measure_disk(tmp_path).sequential > 0
    assert len(written) == disk.LEAST // disk.CHUNK


def test_a_disk_that_fails_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    assert measure_disk(tmp_path, 16 * MIB) == DiskSpeed()
    assert names(tmp_path) == []


def test_without_direct_reading_the_page_cache_is_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system that refuses O_DIRECT."""
    forgotten: list[Any] = []
    real_open, real_advise = os.open, os.posix_fadvise

    def no_direct(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real_open(path, flags, *rest, **named)

    def advise(descriptor: int, offset: int, length: int, advice: int) -> None:
        forgotten.append(advice)
        real_advise(descriptor, offset, length, advice)

    monkeypatch.setattr(os, "open", no_direct)
    monkeypatch.setattr(os, "posix_fadvise", advise)
    speed = measure_disk(tmp_path, 16 * MIB)
    assert speed.sequential > 0
    assert forgotten.count(os.POSIX_FADV_DONTNEED) >= 2  # before each of the two measurements, or oftener
    assert names(tmp_path) == []


def test_what_is_read_again_is_forgotten_before(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = disk._Sample(descriptor=-1, size=2 * disk.CHUNK, cached=True)
    events: list[object] = []
    monkeypatch.setattr(disk, "_forget", lambda _: events.append("forgotten"))
    for _, at in itertools.islice(disk._round_and_round([sample]), 5):
        events.append(at)
    assert events == ["forgotten", 0, disk.CHUNK, "forgotten", 0, disk.CHUNK, "forgotten", 0]


def test_a_ration_that_comes_in_bursts_is_not_taken_for_speed() -> None:
    """Seven chunks each tenth of a second, as soon as it begins; and before that a burst."""
    burst = [0.003 * number for number in range(1, 20)]
    rationed = [0.1 * tenth + 0.003 * number for tenth in range(1, 12) for number in range(7)]
    assert disk._lasting_rate([0.0, *burst, *rationed]) == pytest.approx(70 * disk.CHUNK, rel=0.1)


def test_few_chunks_of_a_slow_disk_all_count() -> None:
    assert disk._lasting_rate([0.0, 0.5, 1.0, 1.5, 2.0]) == pytest.approx(2 * disk.CHUNK)


def test_the_file_system_has_a_name(tmp_path: Path) -> None:
    assert disk.file_system(tmp_path)
    assert disk.file_system(tmp_path) == disk.file_system(tmp_path / "not" / "there" / "yet")
