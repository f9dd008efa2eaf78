"""Measuring processors: every type, the layouts, the bounds. No figure is asserted but as a ratio."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edged.backend import native
from edged.backend.native import Meter
from edged.device.processors import TYPES
from edged.errors import WindowError

SMALL = 4 << 20


@pytest.fixture(scope="module")
def cpu() -> Meter:
    return Meter("CPU", 1)


@pytest.mark.parametrize("ggml_type", TYPES)
def test_the_cpu_multiplies_by_every_type(cpu: Meter, ggml_type: str) -> None:
    speed = cpu.products(ggml_type, batch=16, milliseconds=4, memory=SMALL)
    assert speed is not None
    assert 1e7 < speed.bandwidth < 1e12
    assert 1e7 < speed.flops < 1e14


def test_weights_in_the_layout_of_the_file_are_measured_too(cpu: Meter) -> None:
    assert cpu.products("q4_0", batch=16, milliseconds=4, memory=SMALL, repack=False) is not None


def test_a_type_that_ggml_does_not_know_has_no_speed(cpu: Meter) -> None:
    assert cpu.products("q9_Z", batch=16, milliseconds=4, memory=SMALL) is None


def test_a_type_without_a_quantiser_is_refused_and_aborts_nothing(cpu: Meter) -> None:
    with pytest.raises(WindowError, match="cannot be measured"):
        cpu.products("q8_1", batch=16, milliseconds=4, memory=SMALL)


def test_attention_is_measured(cpu: Meter) -> None:
    assert 1e7 < (cpu.attention(1, depth=256, milliseconds=4) or 0) < 1e13
    assert 1e7 < (cpu.attention(16, depth=256, milliseconds=4) or 0) < 1e13
    for tokens, depth in ((0, 256), (1, 0), (1, 10**9)):
        with pytest.raises(WindowError, match="measure with"):
            cpu.attention(tokens, depth=depth, milliseconds=4)


def test_memory_is_read() -> None:
    assert 1e8 < native.read_bandwidth(2, 10, SMALL) < 1e13


@pytest.mark.parametrize(
    ("device", "threads", "complaint"),
    [("CPU", 0, "0 threads"), ("CPU", 10**6, "threads"), ("Abacus0", 1, "no device called 'Abacus0'")],
)
def test_what_cannot_be_measured_is_refused(device: str, threads: int, complaint: str) -> None:
    with pytest.raises(WindowError, match=complaint):
        Meter(device, threads)


def test_senseless_measurements_are_refused(cpu: Meter) -> None:
    with pytest.raises(WindowError, match="tokens"):
        cpu.products("f16", batch=0, milliseconds=4, memory=SMALL)
    with pytest.raises(WindowError, match="ms"):
        cpu.products("f16", batch=1, milliseconds=0, memory=SMALL)
    with pytest.raises(WindowError, match="threads"):
        native.read_bandwidth(0, 10, SMALL)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's peak of memory")
def test_measuring_takes_no_more_memory_than_it_may() -> None:
    code = (
        "import re; from pathlib import Path; from edged.backend import native\n"
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "before, meter = peak(), native.Meter('CPU', 1)\n"
        "meter.products('q4_0', batch=16, milliseconds=4, memory=16 << 20)\n"
        "print(peak() - before)"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(child.stdout) < 40 * 1024  # KiB: the weights, one matrix to fill them from, ggml itself
