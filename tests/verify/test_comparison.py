"""Bit for bit, and what is said where it is not."""

from __future__ import annotations

import numpy as np
import pytest

from edged.verify.comparison import Comparison, Place, Telling
from edged.verify.script import Frame

FRAME = Frame(seq=1, start=10, tokens=(5, 6, 7))
NOT_A_NUMBER = float("nan")


def logits() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((3, 8), dtype=np.float32)


def test_the_same_is_exact() -> None:
    comparison = Comparison()
    comparison.add(FRAME, logits(), logits())
    assert (comparison.exact, comparison.largest, comparison.first) == (True, 0.0, None)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 3), (2, 7)])
def test_the_smallest_difference_counts_and_is_placed(row: int, column: int) -> None:
    other = logits()
    other[row, column] = np.nextafter(other[row, column], np.float32(9))
    comparison = Comparison()
    comparison.add(FRAME, logits(), logits())
    comparison.add(FRAME, logits(), other)
    comparison.add(FRAME, logits(), logits() + 1)
    assert comparison.first == Place(frame=1, sequence=1, position=10 + row)
    assert comparison.largest == pytest.approx(1)


def test_a_single_wanted_row_is_the_last_one() -> None:
    comparison = Comparison()
    frame = Frame(seq=1, start=10, tokens=(5, 6, 7), last_only=True)
    comparison.add(frame, logits()[:1], logits()[:1] + 1)
    assert comparison.first == Place(0, 1, 12)


def test_what_is_no_number_on_one_side_only_is_infinitely_far() -> None:
    both, one = logits(), logits()
    both[1, 1] = one[1, 1] = NOT_A_NUMBER
    comparison = Comparison()
    comparison.add(FRAME, both, one)
    assert comparison.exact
    one[2, 2] = NOT_A_NUMBER
    comparison.add(FRAME, both, one)
    assert comparison.largest == float("inf")
    assert comparison.first == Place(1, 1, 12)


def test_other_shapes_are_no_comparison() -> None:
    with pytest.raises(ValueError, match="shapes"):
        Comparison().add(FRAME, logits(), logits()[:2])


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        (np.zeros((3, 8), np.float32), "all its logits are the same"),
        (np.full((3, 8), NOT_A_NUMBER, np.float32), "what it computes are not numbers"),
        (logits(), ""),
    ],
)
def test_logits_that_tell_nothing(values: np.ndarray, fault: str) -> None:
    telling = Telling()
    telling.add(values)
    assert telling.fault == fault
