"""Limits of memory and disk by cgroups, version 1 as this machine has it, version 2 in files."""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Home, LabUnavailableError, usage_of
from tests.lab.cgroup import Hierarchy, find, members, prefix_into, remove_group
from tests.lab.disk import DiskGroup, block_device, forget
from tests.lab.memory import MemoryGroup
from tests.lab.scripts import python
from tests.lab.unified import Memory, lay_out

MIB = 2**20

# Reads a file as a whole through a mapping, twice.
MAP = """
import mmap, sys
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
    print(sum(view[at] for _ in range(2) for at in range(0, len(view), 4096)) >= 0)
"""

TIMED = """
import sys, time
began = time.monotonic()
open(sys.argv[1], "rb").read()
print(time.monotonic() - began)
"""

READ_USAGE = """
import sys
from tests.lab import usage_of
before = usage_of()
open(sys.argv[1], "rb").read()
print((usage_of() - before).read_bytes)
"""


@pytest.fixture
def unified(tmp_path: Path) -> Hierarchy:
    """Files as a cgroup of version 2 shows them."""
    group = Memory(anon=3000, inactive_file=1000, active_file=900, shmem=100, unevictable=1000)
    lay_out(tmp_path, {"group": group})
    return Hierarchy(2, tmp_path)


@pytest.fixture
def mounted() -> Iterator[Path]:
    """Where version 2 is mounted, be it without controllers that version 1 has."""
    places = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    place = next((Path(fields[1]) for fields in places if fields[2] == "cgroup2"), None)
    if place is None:
        pytest.skip("cgroups of version 2 are not mounted here")
    yield place


def big_file(home: Home, size: int) -> Path:
    path = home.root / "big"
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
    forget([path])
    return path


@pytest.mark.root
def test_the_page_cache_counts_and_is_given_back_before_a_program_is_killed(home: Home) -> None:
    a = home.device("a", memory="64M")
    file = big_file(home, 128 * MIB)
    assert a.memory is not None
    assert a.run(python(MAP, str(file))).stdout.strip() == "True"
    assert a.memory.oom_kills == 0
    assert a.memory.swapped == 0
    assert 60 * MIB < a.memory.peak <= a.memory.limit
    assert a.memory.cache > 8 * MIB
    assert a.memory.usage >= a.memory.cache
    assert a.memory.major_faults > 0


@pytest.mark.root
def test_a_kill_for_want_of_memory_is_counted(home: Home) -> None:
    a = home.device("a", memory="64M")
    assert a.run(python("bytearray(128 << 20)"), check=False).returncode != 0
    assert a.memory is not None
    assert a.memory.oom_kills == 1


@pytest.mark.root
def test_a_disk_is_slowed_and_its_bytes_are_counted(home: Home) -> None:
    try:
        a = home.device("a", disk_rate="16M")
    except LabUnavailableError as missing:
        pytest.skip(str(missing))
    file = big_file(home, 16 * MIB)
    assert a.disk is not None
    slow = float(a.run(python(TIMED, str(file))).stdout)
    assert slow > 0.8  # the bytes cannot come sooner
    assert 16 * MIB <= a.disk.read_bytes < 32 * MIB
    counted = a.disk.read_bytes
    a.run(python(TIMED, str(file)))
    assert a.disk.read_bytes - counted < MIB  # from the cache


@pytest.mark.root
def test_a_process_counts_what_it_reads_from_disk(home: Home) -> None:
    a = home.device("a")
    a.environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    file = big_file(home, 8 * MIB)
    assert int(a.run(python(READ_USAGE, str(file))).stdout) >= 8 * MIB
    assert int(a.run(python(READ_USAGE, str(file))).stdout) < MIB
    forget([file])
    assert int(a.run(python(READ_USAGE, str(file))).stdout) >= 8 * MIB


def test_usage_grows_with_work() -> None:
    before = usage_of()
    with mmap.mmap(-1, 8 * MIB) as touched:  # fresh pages: an allocator may hand out ones that were used
        touched.write(os.urandom(len(touched)))
        grown = usage_of() - before
    assert grown.minor_faults > 0
    assert grown.peak_resident >= 8 * MIB
    with pytest.raises(FileNotFoundError):
        usage_of(2**22 + 1)


def test_version_2_limits_memory_and_forbids_swap(unified: Hierarchy) -> None:
    group = MemoryGroup("group", 64 * MIB, unified)
    files = {file.name: file for file in unified.root.rglob("*") if file.is_file()}
    assert (unified.root / "cgroup.subtree_control").read_text() == "+memory"
    assert files["memory.max"].read_text() == str(64 * MIB)
    assert files["memory.swap.max"].read_text() == "0"
    assert group.prefix[-1] == str(group.path / "cgroup.procs")


def test_version_2_counts(unified: Hierarchy) -> None:
    group = MemoryGroup("group", 64 * MIB, unified)
    (group.path / "memory.peak").write_text("7000\n")
    assert (group.usage, group.peak, group.oom_kills) == (5000, 7000, 2)
    assert (group.anonymous, group.cache, group.locked, group.major_faults) == (3000, 2000, 1000, 9)
    assert group.swapped == 0


@pytest.mark.root
def test_processes_begin_in_a_group_of_version_2_and_end_with_it(mounted: Path) -> None:
    controllers = (mounted / "cgroup.controllers").read_text().split()
    if not controllers:
        pytest.skip("version 2 has no controller here, so none can be turned on")
    group = Hierarchy(2, mounted).make(f"edged-test-{os.getpid()}", controllers[0])
    try:
        command = [*prefix_into(group), "sh", "-c", "cat /proc/self/cgroup; echo ready; exec sleep 60"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        before = list(iter(process.stdout.readline, "ready\n"))  # the shell alone is left then
        assert f"0::/{group.relative_to(mounted)}\n" in before
        assert members(group) == [process.pid]
    finally:
        remove_group(group)
    process.wait(timeout=10)
    process.stdout.close()
    assert not group.exists()


def test_version_2_slows_a_disk(unified: Hierarchy) -> None:
    here = Path(__file__)
    try:
        disk = block_device(here)
    except LabUnavailableError as missing:
        pytest.skip(str(missing))
    group = DiskGroup("group", here, 5 * MIB, unified)
    assert (group.path / "io.max").read_text() == f"{disk} rbps={5 * MIB}"
    (group.path / "io.stat").write_text(f"9:0 rbytes=1 wbytes=2\n{disk} rbytes=4096 wbytes=0 rios=1\n")
    assert group.read_bytes == 4096


def test_version_2_comes_first(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("memory\n")
    mounts = tmp_path / "mounts"
    legacy = "cgroup /v1/memory cgroup rw,memory 0 0\ncgroup /v1/blkio cgroup rw,blkio 0 0\n"
    mounts.write_text(f"{legacy}cgroup2 {tmp_path} cgroup2 rw 0 0\n")
    assert find("memory", mounts) == Hierarchy(2, tmp_path)
    assert find("disk", mounts) == Hierarchy(1, Path("/v1/blkio"))
    mounts.write_text("tmpfs /tmp tmpfs rw 0 0\n")
    assert find("memory", mounts) is None
