"""The best ring that is known for a problem: exact where it is small, else good ones in rounds, polished.

How far a polished ring is from the best is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

from edged.planning import every_ring, exhaustive, overlap, ranges
from edged.planning.cost import Problem, RingCost
from edged.planning.left_out import with_device
from edged.planning.near import Near, improved
from edged.planning.plan import Objective
from edged.planning.polish import polished
from edged.planning.uneven import Placed, Windows, alike

ABOVE_AVERAGE = (0.0, 0.25, 0.5, 1.0)  # sizes of layers to start from, between the average and the largest
MOST_IMPROVED = 2  # rings, the best to start with
HOPEFUL = 1.25  # of what the head alone takes: moving cuts seldom gains more than a fifth
FEW_ROUNDS = 1, 2
FEW_DEVICES = 8  # for which there is time to begin with several rings
MOST_POLISHED = 3
FEW_PLACES = 20  # where cuts are so few, each of them is moved by itself


def best_ring(
    problem: Problem, objective: Objective, rounds: int | None = None, roughly: bool = False
) -> RingCost | None:
    """The best ring, of the head alone or of several devices; None where nothing fits.

    rounds: the ring comes by each device so often, where there can be a ring; None for the best number.
    roughly: not polished, which takes a fraction of the time.
    """
    if rounds is None and exhaustive.small_enough(problem):
        return exhaustive.best_ring(problem, objective)
    windows = Windows(problem, objective)
    alone = windows.alone() if rounds is None or not can_share(problem) else None
    if not can_share(problem):
        return alone
    bound = inf if alone is None else alone.goal(objective)
    found = [ring for ring in _rings(problem, objective, windows, bound, rounds) if ring is not None]
    few = rounds is None and len(problem.devices) <= FEW_DEVICES and not roughly
    if few and (objective == "throughput" or any(_streams(ring) for ring in found)):
        found += _of_few_rounds(problem, objective)
    starts = sorted({ring.hops: ring for ring in found}.values(), key=lambda ring: ring.goal(objective))
    rings = starts[:1]
    if rings and not roughly:
        best = starts[0]
        if len(starts) > 1:
            polish = [polished(ring, objective, rounds is not None) for ring in starts[:MOST_POLISHED]]
            best = min(polish, key=lambda ring: ring.goal(objective))
        best = polished(best, objective, rounds is not None, thoroughly=True)
        rings = [_taking_in(best, objective) if few else best]
    rings += [] if alone is None else [alone]
    return min(rings, key=lambda ring: ring.goal(objective), default=None)


def _taking_in(ring: RingCost, objective: Objective) -> RingCost:
    """With those devices that were left out only because polishing had to end."""
    for name in ring.problem.devices:
        if name not in ring.shares:
            more = with_device(ring.problem, ring, name, objective)
            if more is not None and more.goal(objective) < ring.goal(objective):
                ring = more
    return ring


def _streams(ring: RingCost) -> bool:
    return any(hop.streamed for hop in ring.hops)


def _of_few_rounds(problem: Problem, objective: Objective) -> list[RingCost]:
    """Rings to begin with: where windows need not come in rounds, the best are often near these."""
    found: list[RingCost] = []
    for rounds in FEW_ROUNDS:
        for ring in _rings(problem, objective, Windows(problem, objective), inf, rounds):
            found += [] if ring is None else [ring]
    return found


def can_share(problem: Problem) -> bool:
    """Whether there is anybody to share the model with, and it can be cut."""
    return bool(problem.model.boundaries) and len(problem.devices) > 1 and problem.model.n_layers > 1


def regular(problem: Problem) -> bool:
    """Whether counting layers is all there is to it."""
    anywhere = len(problem.of.places) == problem.model.n_layers + 1
    return anywhere and problem.of.uniform and not problem.of.fillers


def _rings(
    problem: Problem, objective: Objective, windows: Windows, bound: float, rounds: int | None
) -> Sequence[RingCost | None]:
    """Rings of several devices. `bound`: what the head alone takes."""
    if regular(problem):
        found = overlap.best_counts(problem, objective, rounds, bound)
        return [] if found is None else [found[1]]
    if len(problem.of.places) > FEW_PLACES and not problem.of.fillers:
        return _near_average(problem, objective, rounds)
    return _by_single_cuts(problem, objective, windows, bound, rounds)


def _near_average(problem: Problem, objective: Objective, rounds: int | None) -> list[RingCost]:
    """Near the best ring of the average layer; where none of those fits, of larger layers."""
    for above in ABOVE_AVERAGE:
        rough = replace(problem, model=alike(problem.model, above))
        counts = overlap.best_counts(rough, objective, rounds)
        if counts is None:
            continue
        ring = _improved(problem, counts[0], objective)
        fewer = counts[0].rounds
        while ring is None and rounds is None and fewer > 1:  # where there are few places to cut at
            fewer = fewer * 3 // 4
            again = overlap.best_counts(rough, objective, fewer)
            ring = None if again is None else _improved(problem, again[0], objective)
        if ring is not None:
            return [ring]
    return []


def _improved(problem: Problem, counts: overlap.Counts, objective: Objective) -> RingCost | None:
    near = _near(problem, counts)
    return None if near is None else improved(problem, near, objective)


def _near(problem: Problem, counts: overlap.Counts) -> Near | None:
    """`counts` of layers as cuts by units; None where there are too few units."""
    units = len(problem.of.places) - 2
    per_layer = (units + 1) / problem.model.n_layers
    n, k = len(counts.order), counts.rounds
    if units < n * k:
        return None
    cuts: list[int] = []
    so_far = 0
    for i, deal in enumerate(counts.deals[:-1]):
        so_far += deal.layers
        low = (cuts[-1] if cuts else 0) + k
        cuts.append(min(max(round(so_far * per_layer), low), units - k * (n - 1 - i)))
    return Near(k, counts.order, counts.deals, tuple(cuts))


def _by_single_cuts(
    problem: Problem, objective: Objective, windows: Windows, bound: float, rounds: int | None
) -> list[RingCost | None]:
    starts: list[Placed] = []
    for above in ABOVE_AVERAGE:
        rough = replace(problem, model=alike(problem.model, above))
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
    if rounds != 1:
        found.append(every_ring.best_ring(problem, objective, windows, rounds))
    return found


def _comes_by(owners: Sequence[str], rounds: int) -> bool:
    """Whether each device has a window per round, and the head the closing one besides."""
    return all(owners.count(owner) == rounds + (owner == owners[0]) for owner in set(owners))
