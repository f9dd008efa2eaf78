from __future__ import annotations

from pathlib import Path

import pytest

from edged.device.machine import describe, last_cache_bytes, operating_system, processor_name

INTEL = "processor\t: 0\nmodel\t\t: 154\nmodel name\t: Core i9\n\nprocessor\t: 1\nmodel name\t: Core i9\n"
PI = "processor : 0\nCPU part : 0xd0b\n\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n"


@pytest.mark.parametrize(
    ("cpuinfo", "name"), [(INTEL, "Core i9"), (PI, "Raspberry Pi 5 Model B Rev 1.0")], ids=["x86", "pi"]
)
def test_the_processor_has_the_name_that_the_system_gives(tmp_path: Path, cpuinfo: str, name: str) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    assert processor_name(path) == name


def test_caches_that_cores_share_count_once(tmp_path: Path) -> None:
    for core, shared in ((0, "0-1"), (1, "0-1"), (2, "2-3"), (3, "2-3")):
        for level, size, sharing in ((2, "1024K", str(core)), (3, "32M", shared)):
            folder = tmp_path / f"cpu{core}" / "cache" / f"index{level}"
            folder.mkdir(parents=True)
            for name, text in (("level", str(level)), ("size", size), ("shared_cpu_list", sharing)):
                (folder / name).write_text(text + "\n")
    assert last_cache_bytes(tmp_path) == 2 * 32 * 2**20


def test_a_system_that_says_nothing_of_caches(tmp_path: Path) -> None:
    (tmp_path / "cpu0" / "cache" / "index0").mkdir(parents=True)
    assert last_cache_bytes(tmp_path) == 0


def test_this_machine_is_described() -> None:
    assert operating_system() in ("linux", "macos", "windows", "android")
    assert "core" in describe()
    assert "\n" not in describe()
