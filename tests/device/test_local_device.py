"""This device's profile: what is measured once, what is read anew, and when the one is done again."""

from __future__ import annotations

import mmap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from edged.backend.native import GgmlDevice, Speed
from edged.device import disk, local_device, processors
from edged.device.cgroup import CgroupMemory
from edged.device.disk import DiskSpeed
from edged.device.local_device import RUNTIME_BYTES, measure, memory_budget, own_memory, profile, remembered
from edged.device.type_speeds import MORE_ROUNDS, ROUNDS
from edged.errors import WindowError
from edged.rpc.messages import Progress

GIB, MIB = 2**30, 2**20
CPU = GgmlDevice("CPU", "Abacus 2000", "cpu", 8 * GIB, 8 * GIB)
GPU = GgmlDevice("CUDA0", "A card", "gpu", 6 * GIB, 8 * GIB)


class Machine:
    """A machine of known speed in place of this one; `speed` scales all it does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.speed = 1.0
        self.devices: tuple[GgmlDevice, ...] = (CPU,)
        self.broken: set[str] = set()
        self.measured: list[str] = []
        self.interrupted: dict[str, int] = {}  # how often a type is measured far too slow
        machine = self

        class FakeMeter:
            def __init__(self, device: str, n_threads: int) -> None:
                if device in machine.broken:
                    raise WindowError(f"{device} is broken")
                self._device = device
                machine.measured.append(device)

            def products(self, ggml_type: str, **_: Any) -> Speed | None:
                if ggml_type == "mxfp4":
                    return None  # not every device knows every type
                scale = machine.speed * (10 if self._device == "CUDA0" else 1)
                if machine.interrupted.get(ggml_type, 0) > 0:
                    machine.interrupted[ggml_type] -= 1
                    scale /= 100
                return Speed(1e9 * scale, 1e10 * scale)

            def attention(self, n_tokens: int, **_: Any) -> float | None:
                return 2e10 * machine.speed if self._device == "CPU" else None

        monkeypatch.setattr(processors, "Meter", FakeMeter)
        monkeypatch.setattr(processors.native, "devices", lambda: self.devices)
        monkeypatch.setattr(processors.native, "read_bandwidth", lambda *_: 5e8)
        monkeypatch.setattr(disk, "measure_disk", lambda *_: DiskSpeed(2e8 * self.speed, 1e8))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


IN_A_WINDOW = 1e9 / processors.OTHER_WORK  # what is left of a product's speed on a CPU


def test_a_profile_has_what_was_measured(machine: Machine, tmp_path: Path) -> None:
    machine.devices = (GPU, CPU)
    measured = measure(3, None, tmp_path)
    device = profile(device="id", name="nuc", home=tmp_path, threads=3, measured=measured, cap=GIB, held=0)
    assert [processor.name for processor in device.processors] == ["CPU", "CUDA0"]
    assert device.cpu.speed("q4_K").decode == IN_A_WINDOW
    assert device.gpus[0].speed("q4_K").decode == 1e10
    assert device.cpu.memory_bandwidth == 1e9  # not less than what a product reads
    assert {speed.type for speed in device.cpu.speeds} == set(processors.TYPES) - {"mxfp4"}
    assert (device.cpu.attention_decode, device.gpus[0].attention_decode) == (2e10, 0.0)
    assert device.gpus[0].memory_budget == int(6 * GIB * (1 - local_device.KEEP_FREE))
    assert (device.bandwidth, device.flops) == (IN_A_WINDOW, 1e10)
    assert (device.disk_sequential, device.disk_random) == (2e8, 1e8)
    assert device.memory_budget <= GIB - RUNTIME_BYTES
    assert (device.os, bool(device.system), device.threads) == (
        local_device.machine.operating_system(),
        True,
        3,
    )


def test_a_type_that_was_measured_while_others_had_the_cores_is_measured_again(
    machine: Machine, tmp_path: Path
) -> None:
    machine.interrupted = {"q4_K": 3, "q6_K": ROUNDS + MORE_ROUNDS}
    speeds = measure(1, None, tmp_path).processors[0]
    assert speeds.speed("q4_K").decode == IN_A_WINDOW
    assert speeds.speed("q6_K").decode == pytest.approx(IN_A_WINDOW / 100)  # it may really be so slow


def test_what_is_stored_already_needs_no_more_disk(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.devices = (CPU,)
    monkeypatch.setattr(local_device.shutil, "disk_usage", lambda _: SimpleNamespace(free=7))
    measured = measure(1, None, tmp_path)
    device = profile(
        device="id", name="nuc", home=tmp_path, threads=1, measured=measured, cap=None, held=0, stored=GIB
    )
    assert device.disk_free == GIB + 7


def test_an_integrated_gpu_has_no_memory_of_its_own(machine: Machine, tmp_path: Path) -> None:
    machine.devices = (CPU, GgmlDevice("Vulkan0", "Iris", "igpu", 8 * GIB, 8 * GIB))
    measured = measure(1, None, tmp_path)
    device = profile(device="id", name="nuc", home=tmp_path, threads=1, measured=measured, cap=None, held=0)
    gpu = device.gpus[0]
    assert gpu.shares_memory
    assert gpu.memory_budget == 0


def test_a_gpu_that_fails_is_left_out_and_a_cpu_is_not(machine: Machine, tmp_path: Path) -> None:
    machine.devices = (CPU, GPU)
    machine.broken = {"CUDA0"}
    assert [processor.name for processor in measure(1, None, tmp_path).processors] == ["CPU"]
    machine.broken = {"CPU"}
    with pytest.raises(WindowError, match="CPU is broken"):
        measure(1, None, tmp_path)


def test_it_is_remembered_until_something_changes(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert remembered(1, None, tmp_path) is None
    measured = measure(1, None, tmp_path)
    assert remembered(1, None, tmp_path) == measured
    assert remembered(2, None, tmp_path) is None
    assert remembered(1, GIB, tmp_path) is None
    for changes in (
        {"__version__": "99"},
        {"version": lambda _: "99"},
        {"tightest_limit": lambda: CgroupMemory(GIB, 0)},
        {"machine": SimpleNamespace(describe=lambda: "another CPU")},
        {"disk": SimpleNamespace(file_system=lambda _: "another disk")},
    ):
        with monkeypatch.context() as changed:
            for name, value in changes.items():
                changed.setattr(local_device, name, value)
            assert remembered(1, None, tmp_path) is None, changes
    machine.devices = (CPU, GPU)
    assert remembered(1, None, tmp_path) is None
    machine.devices = (CPU,)
    assert remembered(1, None, tmp_path) == measured


def test_the_best_counts_unless_it_is_to_be_forgotten(machine: Machine, tmp_path: Path) -> None:
    measure(1, None, tmp_path)
    machine.speed = 0.5  # something else runs
    assert measure(1, None, tmp_path).processors[0].speed("q4_0").decode == IN_A_WINDOW
    assert measure(1, None, tmp_path, afresh=True).processors[0].speed("q4_0").decode == IN_A_WINDOW / 2
    known = remembered(1, None, tmp_path)
    assert known is not None and known.processors[0].speed("q4_0").decode == IN_A_WINDOW / 2


def test_progress_begins_at_none_and_ends_at_all(machine: Machine, tmp_path: Path) -> None:
    steps: list[Progress] = []
    measure(1, None, tmp_path, steps.append)
    assert steps[0].done == 0
    assert all(step.done < step.total for step in steps[:-1])
    assert steps[-1].finished
    assert [step.done for step in steps] == list(range(len(steps)))


@pytest.mark.parametrize(
    ("free", "cgroup", "cap", "held", "budget"),
    [
        (10 * GIB, None, None, 0, 9 * GIB),
        (10 * GIB, CgroupMemory(4 * GIB, 2 * GIB), None, 0, 1.8 * GIB),
        (9 * GIB, CgroupMemory(40 * GIB, 0), None, GIB, 9 * GIB),
        (7 * GIB, None, None, 5 * GIB, 9 * GIB),  # a part of what is held is not in memory
        (10 * GIB, None, 3 * GIB, 0, 3 * GIB),
        (10 * GIB, None, 3 * GIB, 2 * GIB, 3 * GIB),
        (1, None, None, 0, 0),
    ],
)
def test_memory_respects_every_limit(
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    cgroup: CgroupMemory | None,
    cap: int | None,
    held: int,
    budget: float,
) -> None:
    available = SimpleNamespace(available=free, swap=64 * GIB)
    monkeypatch.setattr(local_device.psutil, "virtual_memory", lambda: available)
    monkeypatch.setattr(local_device, "tightest_limit", lambda: cgroup)
    monkeypatch.setattr(local_device, "own_memory", lambda: held if held < 5 * GIB else 3 * GIB)
    assert memory_budget(cap, held) == pytest.approx(max(0, budget - RUNTIME_BYTES), abs=2)


def test_what_the_daemon_has_taken_already_is_not_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    available = SimpleNamespace(available=10 * GIB)
    monkeypatch.setattr(local_device.psutil, "virtual_memory", lambda: available)
    monkeypatch.setattr(local_device, "tightest_limit", lambda: None)
    for own, held, to_come in [(100, 0, 60), (300, 0, 0), (300, 200, 60), (300, 400, 160)]:
        monkeypatch.setattr(local_device, "own_memory", lambda own=own: own * MIB)
        ours = min(own, held) * MIB
        budget = (10 * GIB + ours) * 9 // 10 - to_come * MIB
        assert memory_budget(None, held * MIB) == pytest.approx(budget, abs=2)
        assert memory_budget(4 * GIB, held * MIB) == 4 * GIB - RUNTIME_BYTES  # a cap is one of everything


def test_what_windows_take_changes_no_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    limit, others = 10 * GIB, own_memory()
    monkeypatch.setattr(
        local_device, "tightest_limit", lambda: CgroupMemory(limit, GIB + own_memory() - others)
    )
    available = SimpleNamespace(available=64 * GIB)
    monkeypatch.setattr(local_device.psutil, "virtual_memory", lambda: available)
    before, own = memory_budget(None, 0), own_memory()
    reserved = mmap.mmap(-1, 2 * GIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # and never touched
    weights = np.ones(256 * MIB, np.int8)
    assert own_memory() - own == pytest.approx(256 * MIB, rel=0.05)
    assert memory_budget(None, 256 * MIB) == pytest.approx(before, abs=2 * MIB)
    del reserved, weights


def test_memory_of_files_is_not_taken(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(64 * MIB))
    before = own_memory()
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped.find(b"x") == -1  # every page is read
        assert own_memory() - before < 8 * MIB


def test_a_system_without_proc_tells_what_is_resident(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(local_device, "STATUS", tmp_path / "none")
    assert own_memory() == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
