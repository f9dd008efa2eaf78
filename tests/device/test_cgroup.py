from __future__ import annotations

from pathlib import Path

import pytest

from edged.device.cgroup import CgroupMemory, tightest_limit

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


def v2(limit: str, current: int, inactive: int) -> dict[str, str]:
    return {
        "memory.max": limit,
        "memory.current": str(current),
        "memory.stat": f"anon 1\ninactive_file {inactive}\n",
    }


def test_v2_limit_of_a_parent_counts(tmp_path: Path) -> None:
    top = tmp_path / "fs"
    group(top / "user.slice", v2(str(512 * MIB), 300 * MIB, 100 * MIB))
    group(top / "user.slice" / "edged", v2("max", 10 * MIB, 0))
    mounts = f"30 1 0:26 / {top} rw - cgroup2 cgroup2 rw\n"
    found = tightest_limit(proc(tmp_path, "0::/user.slice/edged\n", mounts))
    assert found == CgroupMemory(limit=512 * MIB, taken=200 * MIB)
    assert found is not None and found.available == 312 * MIB


def test_v2_the_tightest_of_the_nested_limits_counts(tmp_path: Path) -> None:
    top = tmp_path / "fs"
    group(top / "a", v2(str(900 * MIB), 850 * MIB, 0))  # the neighbours of `b` fill it
    group(top / "a" / "b", v2(str(400 * MIB), 100 * MIB, 0))
    group(top / "a" / "b" / "c", v2(str(600 * MIB), 90 * MIB, 0))
    mounts = f"30 1 0:26 / {top} rw - cgroup2 cgroup2 rw\n"
    found = tightest_limit(proc(tmp_path, "0::/a/b/c\n", mounts))
    assert found is not None and found.available == 50 * MIB


def test_v2_all_of_the_page_cache_is_usable(tmp_path: Path) -> None:
    top = tmp_path / "fs"
    files = v2(str(512 * MIB), 500 * MIB, 100 * MIB)
    files["memory.stat"] += f"active_file {300 * MIB}\nshmem {50 * MIB}\n"
    group(top / "lab", files)
    mounts = f"30 1 0:26 / {top} rw - cgroup2 cgroup2 rw\n"
    assert tightest_limit(proc(tmp_path, "0::/lab\n", mounts)) == CgroupMemory(512 * MIB, 100 * MIB)


def test_v2_where_processes_are_held_up_is_a_limit_too(tmp_path: Path) -> None:
    top = tmp_path / "fs"
    group(top / "lab", v2("max", 10 * MIB, 0) | {"memory.high": str(200 * MIB)})
    mounts = f"30 1 0:26 / {top} rw - cgroup2 cgroup2 rw\n"
    assert tightest_limit(proc(tmp_path, "0::/lab\n", mounts)) == CgroupMemory(200 * MIB, 10 * MIB)


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
    group(top, v2(str(128 * MIB), 28 * MIB, 0))
    mounts = f"30 1 0:26 /docker/abc {top} rw - cgroup2 cgroup2 rw\n"
    found = tightest_limit(proc(tmp_path, "0::/docker/abc\n", mounts))
    assert found is not None and found.available == 100 * MIB


@pytest.mark.parametrize("missing", ["cgroup", "mountinfo"])
def test_a_system_without_cgroups_has_no_limit(tmp_path: Path, missing: str) -> None:
    folder = proc(tmp_path, "", "")
    (folder / missing).unlink()
    assert tightest_limit(folder) is None
