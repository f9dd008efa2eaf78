"""When a device's memory counts as changed."""

from __future__ import annotations

from edged.cluster.steady import LASTING_S, SteadyBudgets

GIB = 2**30


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_budget_that_comes_back_never_changed() -> None:
    clock = Clock()
    budgets = SteadyBudgets(clock)
    assert budgets.see({"a": 8 * GIB}) == ({"a": 8 * GIB}, None)
    assert budgets.see({"a": 4 * GIB}) == ({"a": 8 * GIB}, LASTING_S)
    clock.now += LASTING_S - 1
    assert budgets.see({"a": 8 * GIB}) == ({"a": 8 * GIB}, None)
    clock.now += 2
    assert budgets.see({"a": 4 * GIB}) == ({"a": 8 * GIB}, LASTING_S)


def test_a_budget_that_stays_away_is_the_new_one() -> None:
    clock = Clock()
    budgets = SteadyBudgets(clock)
    budgets.see({"a": 8 * GIB, "b": GIB})
    budgets.see({"a": 4 * GIB, "b": GIB})
    clock.now += LASTING_S
    assert budgets.see({"a": 3 * GIB, "b": GIB}) == ({"a": 3 * GIB, "b": GIB}, None)


def test_a_little_more_or_less_is_nothing() -> None:
    budgets = SteadyBudgets(Clock())
    budgets.see({"a": 8 * GIB})
    assert budgets.see({"a": 7 * GIB}) == ({"a": 8 * GIB}, None)


def test_who_left_is_forgotten() -> None:
    budgets = SteadyBudgets(Clock())
    budgets.see({"a": 8 * GIB, "b": GIB})
    assert budgets.see({"b": GIB}) == ({"b": GIB}, None)
    assert budgets.see({"a": GIB, "b": GIB})[0] == {"a": GIB, "b": GIB}
