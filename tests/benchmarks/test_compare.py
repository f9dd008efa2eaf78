"""The arithmetic and the order of measurements behind every published figure."""

from __future__ import annotations

import json

import pytest

from benchmarks.compare import Comparison, Report, alternate


def test_rounds_alternate_and_change_who_goes_first() -> None:
    order: list[str] = []

    def measure(name: str, value: float) -> float:
        order.append(name)
        return value

    subject, baseline = alternate(lambda: measure("s", 3.0), lambda: measure("b", 2.0), rounds=3)
    assert "".join(order) == "sb" + "sb" + "bs" + "sb"
    assert subject == (3.0,) * 3
    assert baseline == (2.0,) * 3


def test_the_ratio_is_the_median_of_the_rounds_ratios() -> None:
    comparison = Comparison("x", "ms", "s", "b", (2.0, 30.0, 9.0), (1.0, 10.0, 10.0))
    assert comparison.ratios == (2.0, 3.0, 0.9)
    assert comparison.ratio == 2.0


def test_rounds_must_pair_up() -> None:
    with pytest.raises(ValueError, match="shorter"):
        _ = Comparison("x", "ms", "s", "b", (2.0, 3.0), (1.0,)).ratios


def test_table_and_json_hold_the_same_figures() -> None:
    report = Report("Title", {"threads": 1}, [Comparison("x", "ms", "s", "b", (2.0,), (1.0,), "at most 3")])
    table = report.markdown().splitlines()
    assert len({line.count("|") for line in table if line.startswith("|")}) == 1
    assert any("2.000 (2.000 to 2.000)" in line and "at most 3" in line for line in table)
    row = json.loads(report.json())["comparisons"][0]
    assert row["ratio"] == 2.0
    assert row["subject_values"] == [2.0]
