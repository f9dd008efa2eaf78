"""The dynamic programme against an integer programme, on clusters too large to enumerate."""

from __future__ import annotations

import random

import pytest

from benchmarks.milp import by_counts, by_ways
from benchmarks.solve_time import random_home
from edged.planning import overlap
from edged.planning.cost import Problem
from edged.planning.plan import Objective


def home(seed: int) -> Problem:
    """3 to 6 devices and 10 to 22 layers, all links alike."""
    rng = random.Random(seed)
    return random_home(rng.randint(3, 6), rng.randint(10, 22), rng.choice((0.6, 0.8, 1.2)), True, False, seed)


@pytest.mark.parametrize("objective", ["latency", "throughput"])
@pytest.mark.parametrize("rounds", [1, 2])
def test_has_the_same_optimum(objective: Objective, rounds: int) -> None:
    rings = streams = 0
    for seed in range(20):
        problem = home(seed)
        ring = overlap.best_ring(problem, objective, rounds)
        found, proved = by_ways(problem, objective, rounds)
        assert proved
        if ring is None:
            assert found is None, seed
            continue
        assert found == pytest.approx(ring.goal(objective), rel=1e-6), seed
        rings += 1
        streams += any(hop.streamed for hop in ring.hops)
    assert rings > 10 and streams > 5


def test_is_no_better_than_the_bound_by_counts_and_often_meets_it() -> None:
    met = 0
    for seed in range(20):
        problem = home(seed)
        ring = overlap.best_ring(problem, "latency", 1)
        bound, proved = by_counts(problem)
        assert proved
        if ring is not None:
            assert bound is not None and bound <= ring.token * (1 + 1e-6), seed
            met += bound >= ring.token * (1 - 1e-6)
    assert met > 3
