"""The best ring of several rounds where layers differ and are few: every order and every cut is tried."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, permutations
from math import comb, perm

from edged.planning.cost import Problem, RingCost
from edged.planning.plan import Objective
from edged.planning.uneven import Windows

MOST_RINGS = 500  # a tenth of a second or two


def best_ring(
    problem: Problem, objective: Objective, windows: Windows, rounds: int | None = None
) -> RingCost | None:
    """The best ring of two rounds or more (of `rounds`, where given); None if none fits or they are many."""
    which = _rounds(problem, rounds)
    if sum(_how_many(problem, k) for k in which) > MOST_RINGS:
        return None
    found = [
        cost
        for k in which
        for owners, cuts in _rings(problem, k)
        if (cost := windows.ring(owners, cuts)) is not None
    ]
    return min(found, key=lambda cost: cost.goal(objective), default=None)


def _rounds(problem: Problem, rounds: int | None) -> list[int]:
    most = _units(problem) // 2  # two devices at least
    return [k for k in range(2, most + 1) if rounds in (None, k)]


def _units(problem: Problem) -> int:
    """Windows that there can be, but for the closing one."""
    return len(problem.of.places) - 2


def _how_many(problem: Problem, rounds: int) -> int:
    others, units = len(problem.devices) - 1, _units(problem)
    return sum(
        perm(others, n) * comb(units - 1, rounds * (n + 1) - 1)
        for n in range(1, others + 1)
        if rounds * (n + 1) <= units
    )


def _rings(problem: Problem, rounds: int) -> Iterator[tuple[list[str], list[int]]]:
    """Owners of the windows, and the cuts between them."""
    places, units = problem.of.places, _units(problem)
    others = [name for name in problem.devices if name != problem.head]
    for n in range(1, len(others) + 1):
        for order in permutations(others, n):
            owners = [problem.head, *order] * rounds
            for inner in combinations(range(1, units), len(owners) - 1):
                cuts = [0, *(places[at] for at in inner), places[units], places[-1]]
                yield [*owners, problem.head], cuts
