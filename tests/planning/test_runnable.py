"""What a running cluster can carry out: a device streams or uses its GPU."""

from __future__ import annotations

import pytest

from edged.errors import PlanError
from edged.planning.runnable import devices_doing_both, solve_runnable
from edged.planning.solve import SOLVERS, SolverName, Wishes, solve
from tests.planning.instances import CONTEXT, random_problem


@pytest.mark.parametrize("solver", [solver for solver in SOLVERS if solver != "halda"])
def test_no_device_streams_beside_its_gpu(solver: SolverName) -> None:
    """That the plan is the best of such plans is asked in test_best_ring.py."""
    asked = 0
    for seed in range(500):
        problem = random_problem(seed, uniform=True)
        wishes = Wishes(CONTEXT, solver=solver, workload=problem.workload)
        try:
            freely = solve(problem.cluster, problem.model, wishes)
        except PlanError:
            continue
        try:
            ring = solve_runnable(problem.cluster, problem.model, wishes)
        except PlanError as error:
            assert devices_doing_both(freely) and "\n" not in error.message
            continue
        assert ring.fits and not devices_doing_both(ring)
        assert ring.goal("latency") >= freely.goal("latency") * (1 - 1e-9)
        asked += bool(devices_doing_both(freely))
    assert asked > 1
