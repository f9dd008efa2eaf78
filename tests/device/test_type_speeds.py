"""Types of weights measured on a machine whose cores other programs take now and then."""

from __future__ import annotations

from collections import Counter

import pytest

from edged.backend.native import Speed
from edged.device.type_speeds import MORE_ROUNDS, ROUNDS, type_speeds

QUIET = {"q4_0": Speed(25e9, 295e9), "q5_0": Speed(19e9, 98e9), "q8_0": Speed(31e9, 105e9)}


class Processor:
    """`disturbed`: by type and the number of its measurement, what it is slowed down to."""

    def __init__(self, quiet: dict[str, Speed], disturbed: dict[tuple[str, int], Speed]) -> None:
        self.times: Counter[str] = Counter()
        self._quiet, self._disturbed = quiet, disturbed

    def __call__(self, ggml_type: str) -> Speed | None:
        self.times[ggml_type] += 1
        key = ggml_type, self.times[ggml_type]
        return self._disturbed.get(key) or self._quiet.get(ggml_type)


def measured(processor: Processor) -> tuple[dict[str, Speed], int]:
    steps: list[None] = []
    return type_speeds(processor, [*QUIET, "unknown"], lambda: steps.append(None)), len(steps)


def test_a_quiet_machine_is_measured_in_all_rounds_and_no_more() -> None:
    processor = Processor(QUIET, {})
    assert measured(processor) == (QUIET, ROUNDS * 4)
    assert set(processor.times.values()) == {ROUNDS}


@pytest.mark.parametrize("slow", [Speed(19e9, 8e9), Speed(19e9, 50e9), Speed(1e9, 98e9), Speed(12e9, 70e9)])
@pytest.mark.parametrize("during", [(1,), (2,), (1, 2, 3)])
def test_an_interrupted_type_is_measured_again(slow: Speed, during: tuple[int, ...]) -> None:
    """Also where only the chunk's runs were: q5_0 once got 8 GFLOP/s for prompts instead of 98."""
    worse = {number: Speed(slow.bandwidth / number, slow.flops / number) for number in during}
    processor = Processor(QUIET, {("q5_0", number): worse[number] for number in during})
    assert measured(processor)[0] == QUIET
    assert processor.times["q4_0"] == ROUNDS


def test_a_type_without_quick_kernels_stays_slow() -> None:
    quiet = {**QUIET, "q5_0": Speed(2e9, 8e9)}
    processor = Processor(quiet, {})
    assert measured(processor)[0] == quiet
    assert processor.times["q5_0"] == ROUNDS + MORE_ROUNDS


def test_nothing_can_be_measured() -> None:
    assert measured(Processor({}, {}))[0] == {}
