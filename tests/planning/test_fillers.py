"""Windows that are loaded with layers of zeros beside their own: what these take, and that none streams."""

from __future__ import annotations

import pytest

from edged.planning.best import best_ring
from edged.planning.cost import Problem, ring_cost
from edged.planning.model_profile import Fillers, ModelProfile
from edged.planning.plan import Hop
from tests.planning.instances import brute_force, random_problem


def with_fillers(problem: Problem) -> Problem:
    """Windows that begin after layer 0 have layer 0 before them, those that end early the last one after."""
    model = problem.model
    n = model.n_layers
    edges = (0, *model.boundaries, n)
    fillers = tuple(
        Fillers(first=a, last=z, before=(0,) if a else (), after=(n - 1,) if z < n else ())
        for a in edges
        for z in edges
        if a < z and (a, z) != (0, n)
    )
    fields = {name: getattr(model, name) for name in ModelProfile.model_fields}
    changed = ModelProfile(**{**fields, "fillers": fillers})
    return Problem(problem.cluster, changed, problem.context, problem.workload)


def test_they_take_memory_and_those_before_take_time() -> None:
    plain = random_problem(1, uniform=False)
    n, last = plain.model.n_layers, plain.model.boundaries[-1]
    hops = [Hop(device="d0", first=0, last=last), Hop(device="d0", first=last, last=n)]
    without, filled = ring_cost(plain, hops), ring_cost(with_fillers(plain), hops)
    of = plain.of
    first, final = (of.weights.of(i, i + 1) + of.cache.of(i, i + 1) for i in (0, n - 1))
    one, other = without.shares["d0"], filled.shares["d0"]
    assert other.memory - one.memory == pytest.approx(first + final)
    assert other.compute - one.compute == pytest.approx(plain.devices["d0"].cpu.decode.of(0, 1))


def test_beside_them_nothing_is_streamed() -> None:
    problem = with_fillers(
        next(
            problem
            for seed in range(100)
            if (problem := random_problem(seed, uniform=False)).devices["d0"].disk > 0
        )
    )
    n, cut = problem.model.n_layers, problem.model.boundaries[0]
    hops = [
        Hop(device="d0", first=0, last=cut, streamed=1, read_ahead=1),
        Hop(device="d0", first=cut, last=n),
    ]
    assert not ring_cost(problem, hops).fits


@pytest.mark.parametrize("uniform", [True, False])
def test_plans_with_them_equal_brute_force(uniform: bool) -> None:
    rings = 0
    for seed in range(150):
        problem = with_fillers(random_problem(seed, uniform=uniform))
        ring = best_ring(problem, "latency")
        best = brute_force(problem, "latency")
        found = None if ring is None else ring.goal("latency")
        assert found == (best if best is None else pytest.approx(best, rel=1e-9)), seed
        if ring is not None and len(ring.hops) > 1:
            assert not any(hop.streamed for hop in ring.hops)
            rings += 1
    assert rings >= 3
