"""The best ring that is known for a problem: exact search where it is possible, a good one elsewhere."""

from __future__ import annotations

from math import inf

from edged.planning import overlap, ranges
from edged.planning.cost import Problem, RingCost
from edged.planning.plan import Objective
from edged.planning.uneven import Placed, Windows, alike

ABOVE_AVERAGE = (0.0, 0.25, 0.5, 1.0)  # sizes of layers to start from, between the average and the largest
MOST_IMPROVED = 2  # rings, the best to start with
HOPEFUL = 1.25  # of what the head alone takes: moving cuts seldom gains more than a fifth


def best_ring(problem: Problem, objective: Objective) -> RingCost | None:
    """The best ring, of the head alone or of several devices; None where nothing fits."""
    windows = Windows(problem, objective)
    found = [windows.alone()]
    if problem.model.boundaries and len(problem.devices) > 1 and problem.model.n_layers > 1:
        bound = min((cost.goal(objective) for cost in found if cost is not None), default=inf)
        found += _rings(problem, objective, windows, bound)
    return min(
        (cost for cost in found if cost is not None), key=lambda cost: cost.goal(objective), default=None
    )


def regular(problem: Problem) -> bool:
    """Whether counting layers is all there is to it."""
    return problem.of.uniform and len(problem.of.places) == problem.model.n_layers + 1


def _rings(problem: Problem, objective: Objective, windows: Windows, bound: float) -> list[RingCost | None]:
    """Rings of several devices. `bound`: what the head alone takes."""
    if regular(problem):
        return [overlap.best_ring(problem, objective)]
    starts: list[Placed] = []
    for above in ABOVE_AVERAGE:
        rough = Problem(problem.cluster, alike(problem.model, above), problem.context, problem.workload)
        ring = overlap.best_ring(rough, objective)
        if ring is None:
            continue
        cuts = [*(hop.first for hop in ring.hops), problem.model.n_layers]
        placed = windows.placed([hop.device for hop in ring.hops], cuts)
        if placed is not None:
            starts.append(placed)
    starts = [one for one in starts if one.goal < HOPEFUL * bound]
    best = sorted(starts, key=lambda one: one.goal)[:MOST_IMPROVED]
    found: list[RingCost | None] = [windows.improved(one) for one in best]
    if ranges.small_enough(problem):
        found.append(ranges.best_ring(problem, objective))
    return found
