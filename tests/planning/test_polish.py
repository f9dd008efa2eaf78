"""Rings made better step by step: what comes out is a ring, and as good as the cost model says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.solve_time import random_home
from edged.planning import baselines, exhaustive
from edged.planning.cost import Problem, RingCost
from edged.planning.left_out import left_out
from edged.planning.plan import Objective
from edged.planning.polish import polished
from edged.planning.solve import Wishes, plan_of
from tests.planning.instances import random_problem

OBJECTIVES: tuple[Objective, ...] = ("latency", "throughput")
START = {"even": baselines.even, "memory": baselines.by_memory, "compute": baselines.by_compute}


def starts(problem: Problem, objective: Objective) -> list[RingCost]:
    found = [start(problem, objective) for start in START.values()]
    return [ring for ring in found if ring is not None and len(ring.hops) > 1]


@pytest.mark.parametrize("mixes", [True, False], ids=["mixing", "runnable"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_is_never_worse_and_always_a_ring(objective: Objective, mixes: bool) -> None:
    better = 0
    for devices, memory, alike, measured in (
        (3, 0.7, True, True),
        (4, 0.7, False, False),
        (6, 1.5, False, True),
    ):
        problem = replace(random_home(devices, 40, memory, alike, measured), mixes=mixes)
        for ring in starts(problem, objective):
            found = polished(ring, objective)
            assert found.fits and found.goal(objective) <= ring.goal(objective)
            plan_of(found, Wishes(problem.context, objective=objective))  # refuses what is no ring
            assert mixes or not any(share.does_both for share in found.shares.values())
            better += found.goal(objective) < 0.9 * ring.goal(objective)
    assert better > 3


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_comes_near_the_best_of_small_problems(objective: Objective) -> None:
    gaps = []
    for seed in range(300):
        problem = random_problem(seed, uniform=seed % 2 == 0)
        best = exhaustive.best_ring(problem, objective)
        for ring in starts(problem, objective):
            assert best is not None
            gap = polished(ring, objective).goal(objective) / best.goal(objective)
            assert gap >= 1 - 1e-9, seed
            gaps.append(gap)
    assert len(gaps) > 100
    assert sum(gap < 1.01 for gap in gaps) > 0.6 * len(gaps)


def test_takes_in_who_saves_something() -> None:
    """Of several rounds a small device may have a window in some only."""
    for memory in (0.5, 0.7):
        problem = replace(random_home(4, 40, memory, False, True), mixes=False)
        for ring in starts(problem, "latency"):
            found = polished(ring, "latency", thoroughly=True)
            spare = [out.would_cost_ms for out in left_out(found, "latency")]
            assert all(cost is None or cost > -0.05 for cost in spare)


def test_given_rounds_are_kept() -> None:
    problem = random_home(4, 40, 0.7, False, True)
    for ring in starts(problem, "latency"):
        found = polished(ring, "latency", keeps_rounds=True)
        assert [hop.device for hop in found.hops] == [hop.device for hop in ring.hops]
