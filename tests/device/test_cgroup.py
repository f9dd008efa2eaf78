from __future__ import annotations

from pathlib import Path

import pytest

from edged.device.cgroup import CgroupMemory, tightest_limit
from tests.lab.unified import Memory, lay_out

MIB = 2**20


def proc(tmp_path: Path, cgroup: str, mounts: str) -> Path:
    folder = tmp_path / "proc"
    folder.mkdir()
    (folder / "cgroup").write_text(cgroup)
    (folder / "mountinfo").write_text(mounts)
    return folder


def group(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


NESTED = {
    "machine.slice": Memory(maximum=None, anon=900 * MIB, active_file=200 * MIB),
    "machine.slice/home": Memory(maximum=900 * MIB, anon=400 * MIB, active_file=100 * MIB, swap_max=0),
    "machine.slice/home/edged": Memory(
        maximum=800 * MIB,
        high=700 * MIB,
        anon=300 * MIB,
        inactive_file=50 * MIB,
        active_file=30 * MIB,
        shmem=10 * MIB,
        unevictable=200 * MIB,
        kernel=8 * MIB,
    ),
}


@pytest.mark.parametrize(
    ("changes", "limit", "taken"),
    [
        ({}, 700, 318),  # memory.high of its own; locked memory, tmpfs and the kernel's own count as taken
        ({"machine.slice/home/edged": Memory(maximum=350 * MIB, anon=300 * MIB)}, 350, 300),
        ({"machine.slice/home/edged": Memory(anon=300 * MIB)}, 900, 400),  # its parent's
        ({"machine.slice/home": Memory(maximum=900 * MIB, anon=850 * MIB)}, 900, 850),  # neighbours fill it
        ({"machine.slice": Memory(maximum=1000 * MIB, anon=950 * MIB, active_file=50 * MIB)}, 1000, 950),
        ({"machine.slice": Memory(high=500 * MIB, anon=600 * MIB)}, 500, 600),  # above high it is held up
    ],
)
def test_v2_the_tightest_of_nested_limits_counts(
    tmp_path: Path, changes: dict[str, Memory], limit: int, taken: int
) -> None:
    top = tmp_path / "fs"
    lay_out(top, NESTED | changes)
    mounts = f"30 1 0:26 / {top} rw - cgroup2 cgroup2 rw\n"
    found = tightest_limit(proc(tmp_path, "0::/machine.slice/home/edged\n", mounts))
    assert found == CgroupMemory(limit * MIB, taken * MIB)
    assert found.available == max(0, limit - taken) * MIB


def test_v2_without_any_limit(tmp_path: Path) -> None:
    top = tmp_path / "fs"
    lay_out(top, {"user.slice": Memory(anon=MIB), "user.slice/edged": Memory(anon=MIB)})
    mounts = f"30 1 0:26 / {top} rw - cgroup2 cgroup2 rw\n"
    assert tightest_limit(proc(tmp_path, "0::/user.slice/edged\n", mounts)) is None
    (tmp_path / "proc" / "cgroup").write_text("0::/\n")  # the root group has no limits at all
    assert tightest_limit(tmp_path / "proc") is None


def test_v2_beside_v1_that_has_the_memory_controller(tmp_path: Path) -> None:
    unified, legacy = tmp_path / "unified", tmp_path / "memory"
    group(unified / "lab", {"cgroup.controllers": "hugetlb\n", "memory.pressure": ""})
    group(legacy / "lab", {"memory.limit_in_bytes": str(256 * MIB), "memory.usage_in_bytes": "0"})
    (legacy / "lab" / "memory.stat").write_text("total_inactive_file 0\n")
    mounts = (
        f"30 1 0:26 / {unified} rw - cgroup2 cgroup2 rw\n31 1 0:27 / {legacy} rw - cgroup cgroup rw,memory\n"
    )
    found = tightest_limit(proc(tmp_path, "4:memory:/lab\n0::/lab\n", mounts))
    assert found == CgroupMemory(256 * MIB, 0)


def test_v1_limit(tmp_path: Path) -> None:
    top = tmp_path / "memory"
    files = {
        "memory.limit_in_bytes": str(256 * MIB),
        "memory.usage_in_bytes": str(300 * MIB),
        "memory.stat": "total_inactive_file 0\n",
    }
    group(top / "lab", files)
    mounts = f"31 1 0:27 / {top} rw - cgroup cgroup rw,memory\n32 1 0:28 / /x rw - cgroup cgroup rw,cpu\n"
    found = tightest_limit(proc(tmp_path, "3:cpu:/\n4:memory:/lab\n", mounts))
    assert found is not None and found.limit == 256 * MIB
    assert found.available == 0


def test_v1_number_for_no_limit_is_no_limit(tmp_path: Path) -> None:
    top = tmp_path / "memory"
    files = {
        "memory.limit_in_bytes": "9223372036854771712",
        "memory.usage_in_bytes": "1",
        "memory.stat": "total_inactive_file 0\n",
    }
    group(top, files)
    mounts = f"31 1 0:27 / {top} rw - cgroup cgroup rw,memory\n"
    assert tightest_limit(proc(tmp_path, "4:memory:/\n", mounts)) is None


def test_container_sees_its_own_part_only(tmp_path: Path) -> None:
    top = tmp_path / "fs"
    lay_out(top, {".": Memory(maximum=128 * MIB, anon=28 * MIB)})
    mounts = f"30 1 0:26 /docker/abc {top} rw - cgroup2 cgroup2 rw\n"
    found = tightest_limit(proc(tmp_path, "0::/docker/abc\n", mounts))
    assert found is not None and found.available == 100 * MIB


@pytest.mark.parametrize("missing", ["cgroup", "mountinfo"])
def test_a_system_without_cgroups_has_no_limit(tmp_path: Path, missing: str) -> None:
    folder = proc(tmp_path, "", "")
    (folder / missing).unlink()
    assert tightest_limit(folder) is None
