"""`edged profile`: what it prints, when it measures, and what it says where it cannot."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edged.device import local_device
from edged.device.speed_record import Measured, SpeedRecord
from edged.errors import WindowError
from edged.planning.profile import DeviceProfile, ProcessorProfile, TypeSpeed
from edged.rpc.messages import Progress
from tests.cli.conftest import Outcome
from tests.cli.door import Door

Edged = Callable[..., Outcome]
GIB = 2**30


class Measuring:
    """In place of the measurement: counts, and remembers as the real one does."""

    def __init__(self) -> None:
        self.times = 0
        self.problem: Exception | None = None

    def __call__(
        self, threads: int, cap: int | None, home: Path, report: Callable[[Progress], None], **_: Any
    ) -> Measured:
        self.times += 1
        if self.problem is not None:
            raise self.problem
        report(Progress(stage="measuring this device", done=0, total=2))
        cpu = ProcessorProfile(
            name="CPU",
            kind="cpu",
            speeds=(
                TypeSpeed(type="q4_0", decode=12.34e9, prefill=250e9),
                TypeSpeed(type="q6_K", decode=0.8e9, prefill=98e9),
            ),
            memory_bandwidth=15e9,
        )
        gpu = cpu.model_copy(
            update={"name": "CUDA0", "kind": "gpu", "description": "A \x1b[31mcard", "speeds": cpu.speeds[:1]}
        )
        of = local_device.circumstances(threads, cap, home)
        found = Measured(of=of, processors=(cpu, gpu), disk_sequential=2.5e9, disk_random=400e6)
        SpeedRecord(home).keep(found)
        return found


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> Measuring:
    made = Measuring()
    monkeypatch.setattr(local_device, "measure", made)
    return made


def test_it_measures_once_and_again_when_asked(edged: Edged, measuring: Measuring) -> None:
    first = edged("profile")
    assert first.code == 0
    assert "measuring this device" in first.err
    assert edged("profile").err == ""
    assert measuring.times == 1
    edged("profile", "--fresh")
    assert measuring.times == 2
    edged("profile", "--threads", "7")
    assert measuring.times == 3


def test_the_table_is_for_people(edged: Edged, measuring: Measuring) -> None:
    out = edged("profile", "--name", "nuc").out
    facts = dict(line.split(maxsplit=1) for line in out.split("\n\n")[0].splitlines())
    assert facts["device"] == "nuc"
    assert facts["memory"].endswith("for models now, 15.0 GB/s")
    assert "2.5 GB/s in sequence, 400 MB/s at random" in facts["disk"]
    rows = [line.split() for line in out.splitlines() if line.startswith(("q4_0", "q6_K"))]
    assert rows == [
        ["q4_0", "12.3", "GB/s", "250", "GFLOP/s", "12.3", "GB/s", "250", "GFLOP/s"],
        ["q6_K", "800", "MB/s", "98", "GFLOP/s", "-", "-"],
    ]
    assert "\x1b" not in out


def test_programs_get_the_whole_profile(edged: Edged, measuring: Measuring) -> None:
    out = edged("profile", "--json", "--memory", "2G", "--threads", "3").out
    profile = DeviceProfile.model_validate(json.loads(out))
    assert (profile.threads, profile.bandwidth, profile.disk_sequential) == (3, 12.34e9, 2.5e9)
    assert profile.memory_budget <= 2 * GIB


def test_a_daemon_that_runs_knows_better_what_it_may_hold(
    edged: Edged, measuring: Measuring, door: Door
) -> None:
    mine = next(one for one in door.status().members if one.device == door.status().device)
    assert json.loads(edged("profile", "--json").out)["memory_budget"] == mine.memory_budget > 0
    capped = json.loads(edged("profile", "--json", "--memory", "400M").out)
    assert capped["memory_budget"] <= 400 * 2**20


def test_what_goes_wrong_is_one_line(edged: Edged, measuring: Measuring, home: Path) -> None:
    measuring.problem = WindowError("ggml has no CPU backend")
    assert edged("profile") == Outcome(1, "", "edged: ggml has no CPU backend\n")
    home.chmod(0o777)
    outcome = edged("profile")
    assert (outcome.code, outcome.out) == (1, "")
    assert "others can write to" in outcome.err
    assert os.listdir(home) == []  # noqa: PTH208
