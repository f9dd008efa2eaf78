"""What a running cluster can carry out: a device streams or uses its GPU."""

from __future__ import annotations

from itertools import product

import pytest

from edged.errors import PlanError
from edged.planning.profile import ClusterProfile
from edged.planning.runnable import devices_doing_both, solve_runnable
from edged.planning.solve import Wishes, solve
from tests.planning.instances import CONTEXT, random_problem


def best_of_all_choices(cluster: ClusterProfile, problem_seed: int, wishes: Wishes) -> float | None:
    """Every device with a GPU without its GPU or without its disk."""
    model = random_problem(problem_seed, uniform=True).model
    goals = []
    changes = [
        ({"processors": device.processors[:1]}, {"disk_sequential": 0.0}) if device.gpus else ({},)
        for device in cluster.devices
    ]
    for chosen in product(*changes):
        company = cluster
        for device, change in zip(cluster.devices, chosen, strict=True):
            company = company.with_device(device.model_copy(update=change))
        try:
            goals.append(solve(company, model, wishes).goal(wishes.objective))
        except PlanError:
            continue
    return min(goals, default=None)


def test_is_the_best_of_all_choices_between_gpu_and_disk() -> None:
    asked = 0
    for seed in range(500):
        problem = random_problem(seed, uniform=True)
        wishes = Wishes(CONTEXT, workload=problem.workload)
        try:
            freely = solve(problem.cluster, problem.model, wishes)
        except PlanError:
            continue
        best = best_of_all_choices(problem.cluster, seed, wishes)
        try:
            ring = solve_runnable(problem.cluster, problem.model, wishes)
        except PlanError as error:
            assert best is None and "\n" not in error.message
            continue
        assert not devices_doing_both(ring)
        assert ring.goal("latency") == pytest.approx(best, rel=1e-9), seed
        assert ring.goal("latency") >= freely.goal("latency") * (1 - 1e-9)
        asked += bool(devices_doing_both(freely))
    assert asked > 3
