"""The overlap-aware solver against everything there is, and against what others would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.planning import baselines, halda, overlap
from edged.planning.best import best_ring, can_share
from edged.planning.cost import Problem, RingCost, ring_cost
from edged.planning.plan import Hop, Objective, Plan
from edged.planning.solve import Wishes, make_plan, solve
from tests.planning.instances import (
    CONTEXT,
    brute_force,
    brute_force_of_cuts,
    brute_force_of_rounds,
    random_problem,
)

OBJECTIVES: tuple[Objective, ...] = ("latency", "throughput")
ROUNDS_PAY = (610, 1850, 2279, 2719, 3010, 3290)  # seeds; with so few layers this is rare


@pytest.mark.parametrize("seeds", [range(100 * block, 100 * (block + 1)) for block in range(4)], ids=str)
@pytest.mark.parametrize("mixes", [True, False], ids=["mixing", "runnable"])
@pytest.mark.parametrize("uniform", [True, False], ids=["alike", "differing"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_equals_brute_force(objective: Objective, uniform: bool, mixes: bool, seeds: Sequence[int]) -> None:
    for seed in seeds:
        problem = replace(random_problem(seed, uniform=uniform), mixes=mixes)
        ring = best_ring(problem, objective)
        best = brute_force(problem, objective)
        found = None if ring is None else ring.goal(objective)
        assert found == (best if best is None else pytest.approx(best, rel=1e-9)), seed
        assert ring is None or ring.fits


@pytest.mark.parametrize("mixes", [True, False], ids=["mixing", "runnable"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_counts_equal_brute_force_where_layers_are_alike(objective: Objective, mixes: bool) -> None:
    """What large problems begin with: layers dealt out evenly over the rounds. Polishing comes after it."""
    rings = lesser = 0
    for seed in (*range(200), *ROUNDS_PAY):
        problem = replace(random_problem(seed, uniform=True), mixes=mixes)
        if not can_share(problem):
            continue
        ring = overlap.best_ring(problem, objective)
        best = brute_force_of_rounds(problem, objective, rounds=(1, 2, 3))
        assert (ring is None) == (best is None), seed
        if ring is None or best is None:
            continue
        assert ring.goal(objective) <= best * 1.01, seed
        lesser += ring.goal(objective) > best * (1 + 1e-9)
        rings += 1
    assert rings > 30 and lesser <= 1  # how often it comes by is not always the best number


@pytest.mark.parametrize("rounds", [1, 2])
def test_is_no_worse_than_brute_force_with_rounds_given(rounds: int) -> None:
    rings = 0
    for seed in range(100):
        problem = random_problem(seed, uniform=True)
        if not can_share(problem):
            continue
        ring = best_ring(problem, "latency", rounds)
        best = brute_force_of_rounds(problem, "latency", rounds=(rounds,))
        assert (ring is None) == (best is None), seed
        assert ring is None or best is None or ring.goal("latency") <= best * (1 + 1e-9), seed
        rings += ring is not None and ring.rounds == rounds
    assert rings > 10


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_is_no_worse_than_brute_force_of_several_rounds_where_layers_differ(objective: Objective) -> None:
    rings = 0
    for seed in range(200):
        problem = random_problem(seed, uniform=False)
        if not can_share(problem):
            continue
        found = [
            ring
            for ring in (best_ring(problem, objective, rounds) for rounds in (2, 3))
            if ring is not None and len(ring.shares) > 1
        ]
        best = brute_force_of_cuts(problem, objective, (2, 3))
        goal = min((ring.goal(objective) for ring in found), default=None)
        assert (goal is None) == (best is None), seed
        assert goal is None or best is None or goal <= best * (1 + 1e-9), seed
        rings += best is not None
    assert rings > 10


def test_instances_ask_something_of_the_solver() -> None:
    """Else equality with brute force would mean little."""
    rings = [
        best_ring(random_problem(seed, uniform=uniform), objective)
        for uniform in (True, False)
        for objective in OBJECTIVES
        for seed in range(300)
    ]
    found = [ring for ring in rings if ring is not None]
    assert len(found) > 500
    assert sum(len(ring.shares) > 1 for ring in found) > 200
    assert sum(any(hop.streamed for hop in ring.hops) for ring in found) > 100
    assert sum(any(hop.gpu_layers for hop in ring.hops) for ring in found) > 100
    assert sum(ring.hops[-1].streams_output for ring in found) > 5
    closings = [ring.hops[-1] for ring in found if len(ring.hops) > 1]
    assert sum(hop.n_layers > 1 for hop in closings) > 20
    assert sum(hop.streamed > 0 for hop in closings) > 20
    assert sum(0 < hop.gpu_layers < hop.n_layers for hop in closings) > 5
    assert sum(len(ring.hops) > len(ring.shares) + 1 for ring in found) > 5


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from(OBJECTIVES))
def test_plans_keep_their_promises(seed: int, uniform: bool, objective: Objective) -> None:
    problem = random_problem(seed, uniform=uniform)
    wishes = Wishes(CONTEXT, objective=objective, workload=problem.workload, any_head=True)
    rivals = [
        _goal(problem, replace(wishes, solver="single")),
        _goal(problem, replace(wishes, solver="even")),
    ]
    possible = [goal for goal in rivals if goal is not None]
    goal = _goal(problem, wishes)
    assert goal is not None or not possible
    if goal is None:
        return
    assert all(goal <= rival * (1 + 1e-9) for rival in possible)
    plan = make_plan(problem.cluster, problem.model, wishes)
    _keeps_budgets(problem, plan)
    covered = [layer for hop in plan.hops for layer in range(hop.first, hop.last)]
    assert covered == list(range(problem.model.n_layers))
    assert {hop.first for hop in plan.hops[1:]} <= set(problem.model.boundaries)
    in_ring = {hop.device for hop in plan.hops}
    assert in_ring | {out.device for out in plan.left_out} == set(problem.devices)


def _goal(problem: Problem, wishes: Wishes) -> float | None:
    from edged.errors import PlanError

    try:
        return solve(problem.cluster, problem.model, wishes).goal(wishes.objective)
    except PlanError:
        return None


def _keeps_budgets(problem: Problem, plan: Plan) -> None:
    assert plan.expected is not None
    for one in plan.expected.devices:
        device = problem.cluster.by_id[one.device]
        assert one.memory <= device.memory_budget
        assert one.memory + one.memory_left == pytest.approx(device.memory_budget, abs=2)
        assert one.gpu_memory_left >= 0
        stored = sum(
            sum(problem.model.layer_bytes[hop.first : hop.last])
            for hop in plan.hops
            if hop.device == one.device
        )
        assert stored <= device.disk_free


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_is_never_worse_than_what_others_do(objective: Objective) -> None:
    compared = 0
    for seed in range(60):
        problem = random_problem(seed, uniform=True)
        best = best_ring(problem, objective)
        for rival in (halda.best_ring, baselines.even, baselines.by_memory, baselines.by_compute):
            cost = rival(problem, objective)
            if cost is None or not cost.fits:
                continue
            assert best is not None and best.goal(objective) <= cost.goal(objective) * (1 + 1e-9)
            compared += 1
    assert compared > 60


def test_reading_hides_behind_the_other_layers_and_the_disk_sets_the_least_time() -> None:
    problem = next(
        problem
        for seed in range(100)
        if (problem := random_problem(seed, uniform=True)).model.n_layers == 7
        and problem.devices["d0"].disk > 0
    )
    device, of = problem.devices["d0"], problem.of
    layer, read = device.cpu.decode.of(0, 1), of.weights.of(0, 1) / device.disk

    def ring(streamed: int, read_ahead: int) -> RingCost:
        return ring_cost(
            problem, [Hop(device="d0", first=0, last=7, streamed=streamed, read_ahead=read_ahead)]
        )

    whole = ring(0, 0).token
    assert ring(1, 1).token == pytest.approx(max(whole, read))
    for streamed in range(2, 8):
        one = ring(streamed, 1)
        assert one.token >= streamed * read * (1 - 1e-9) and one.token >= whole
        assert one.token <= max(whole, (7 // streamed) * layer + streamed * read) + device.cpu.output
        assert ring(streamed, streamed).token == pytest.approx(max(whole, streamed * read))
