"""The best ring that is known for a problem: exact search where it is possible, a good one elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from edged.planning import overlap, ranges
from edged.planning.cost import Problem, RingCost
from edged.planning.plan import Objective
from edged.planning.uneven import Placed, Windows, alike

ABOVE_AVERAGE = (0.0, 0.25, 0.5, 1.0)  # sizes of layers to start from, between the average and the largest
MOST_IMPROVED = 2  # rings, the best to start with
HOPEFUL = 1.25  # of what the head alone takes: moving cuts seldom gains more than a fifth


def best_ring(problem: Problem, objective: Objective, rounds: int | None = None) -> RingCost | None:
    """The best ring, of the head alone or of several devices; None where nothing fits.

    rounds: the ring comes by each device so often, where there can be a ring; None for the best number.
    """
    windows = Windows(problem, objective)
    found = [windows.alone()] if rounds is None or not can_share(problem) else []
    if can_share(problem):
        bound = min((cost.goal(objective) for cost in found if cost is not None), default=inf)
        found += _rings(problem, objective, windows, bound, rounds)
    return min(
        (cost for cost in found if cost is not None), key=lambda cost: cost.goal(objective), default=None
    )


def can_share(problem: Problem) -> bool:
    """Whether there is anybody to share the model with, and it can be cut."""
    return bool(problem.model.boundaries) and len(problem.devices) > 1 and problem.model.n_layers > 1


def regular(problem: Problem) -> bool:
    """Whether counting layers is all there is to it."""
    return problem.of.uniform and len(problem.of.places) == problem.model.n_layers + 1


def _rings(
    problem: Problem, objective: Objective, windows: Windows, bound: float, rounds: int | None
) -> list[RingCost | None]:
    """Rings of several devices. `bound`: what the head alone takes."""
    if regular(problem):
        return [overlap.best_ring(problem, objective, rounds)]
    starts: list[Placed] = []
    for above in ABOVE_AVERAGE:
        rough = Problem(problem.cluster, alike(problem.model, above), problem.context, problem.workload)
        ring = overlap.best_ring(rough, objective, rounds)
        if ring is None:
            continue
        cuts = [*(hop.first for hop in ring.hops), problem.model.n_layers]
        placed = windows.placed([hop.device for hop in ring.hops], cuts)
        if placed is not None and (rounds is None or _comes_by(placed.owners, rounds)):
            starts.append(placed)
    starts = [one for one in starts if one.goal < HOPEFUL * bound]
    best = sorted(starts, key=lambda one: one.goal)[:MOST_IMPROVED]
    found: list[RingCost | None] = [windows.improved(one) for one in best]
    if rounds in (None, 1) and ranges.small_enough(problem):
        found.append(ranges.best_ring(problem, objective))
    return found


def _comes_by(owners: Sequence[str], rounds: int) -> bool:
    """Whether each device has a window per round, and the head the closing one besides."""
    return all(owners.count(owner) == rounds + (owner == owners[0]) for owner in set(owners))
