"""The overlap-aware solver: who takes how many layers, when disks read while others compute.

For k rounds and an order of the devices, each device has ways of taking n layers (`edged.planning.options`).
The token time is the greater of the way round the ring and the slowest disk, so a limit on the disks' time
splits the question: within a limit, the least sum of busy times and hops is found by dynamic programming over
devices and layers; and since that sum falls as the limit rises, the best limit is found by bisection. Many
streams: the least possible slowest stage first, in the same way, then the quickest ring that keeps to it.

Exact for rings in which each device has a window in every round, where all layers are alike and may be cut
anywhere. `edged.planning.near` and `edged.planning.uneven` do the other models, `edged.planning.polish` goes
on from there to rings of any form, and `edged.planning.exhaustive` does small problems wholly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edged.planning.cost import Problem, RingCost, ring_cost
from edged.planning.deal import Deal, hops_of_windows, ring_windows
from edged.planning.options import Grid, Options, options
from edged.planning.plan import Hop, Objective
from edged.planning.ring_order import orders

Counted = NDArray[np.int64]

MOST_ROUNDS = 8  # each round costs a window's memory and a hop per device
EVEN_MORE = 12, 16, 24, 32  # rounds, looked at where the most of those are best
SLACK = 1e-12  # relative: sums of the same terms in another order


@dataclass(frozen=True, slots=True)
class Counts:
    """A ring by counts: the devices in order, the head first, and what each does."""

    rounds: int
    order: tuple[str, ...]
    deals: tuple[Deal, ...]


def best_ring(problem: Problem, objective: Objective, rounds: int | None = None) -> RingCost | None:
    """The best ring of two devices or more, None where there is none. All layers count as alike.

    rounds: so many; None for the best number.
    """
    found = best_counts(problem, objective, rounds)
    return None if found is None else found[1]


def best_counts(
    problem: Problem, objective: Objective, rounds: int | None = None, goal: float = np.inf
) -> tuple[Counts, RingCost] | None:
    """As `best_ring`, with the counts that make it. goal: what is not better than this is not looked for."""
    closing = problem.of.places[-1] - problem.of.places[-2]
    candidates = list(orders(problem))
    found: tuple[Counts, RingCost] | None = None
    for k in (*range(1, MOST_ROUNDS + 1), *EVEN_MORE) if rounds is None else (rounds,):
        if rounds is None and k > MOST_ROUNDS and (found is None or found[0].rounds < MOST_ROUNDS - 1):
            break
        if found is not None and not _may_be_better(problem, candidates, k, closing, objective, goal):
            break
        table = _ways(problem, k, closing)
        if table is None:
            break
        for order in candidates:
            counts = _search(problem, table, order, k, closing, objective, goal)
            if counts is None:
                continue
            cost = ring_cost(problem, hops_of(problem, counts, closing))
            if cost.fits and cost.goal(objective) < goal * (1 - SLACK):
                found, goal = (counts, cost), cost.goal(objective)
    return found


def _may_be_better(
    problem: Problem,
    candidates: Sequence[Sequence[str]],
    k: int,
    closing: int,
    objective: Objective,
    goal: float,
) -> bool:
    """Whether any ring of k rounds or more may beat `goal`: if nobody ever waited in a window for a disk.

    More rounds cost memory, hops and runs; all they can save is such waiting.
    """
    table = _ways(problem, k, closing, waiting=False)
    if table is None:
        return False
    return any(
        search is not None and search.beats(goal, objective)
        for search in (_searching(problem, table, order, k, closing) for order in candidates)
    )


def hops_of(problem: Problem, counts: Counts, closing: int) -> tuple[Hop, ...]:
    """The windows that `counts` stands for, in ring order."""
    windows, last = ring_windows(
        counts.order,
        [deal.layers for deal in counts.deals],
        counts.rounds,
        closing,
        problem.model.n_layers,
    )
    by_device = {
        device: iter(
            hops_of_windows(
                device, [(first, last) for owner, first, last in windows if owner == device], deal
            )
        )
        for device, deal in zip(counts.order, counts.deals, strict=True)
    }
    head = counts.order[0]
    return (
        *(next(by_device[device]) for device, _, _ in windows),
        counts.deals[0].closing.hop(head, *last),
    )


def _ways(problem: Problem, rounds: int, closing: int, waiting: bool = True) -> dict[str, Options] | None:
    """Of every device that can take part; None if the head cannot."""
    table: dict[str, Options] = {}
    for device, costs in problem.devices.items():
        found = options(costs, problem.of, rounds, closing if device == problem.head else 0, waiting)
        if found is not None:
            table[device] = found
    return table if problem.head in table else None


def _searching(
    problem: Problem, table: dict[str, Options], order: Sequence[str], rounds: int, closing: int
) -> _Search | None:
    names = [problem.head, *(device for device in order if device in table)]
    if len(names) < 2:
        return None
    return _Search(problem, [table[name] for name in names], names, rounds, closing)


def _search(
    problem: Problem,
    table: dict[str, Options],
    order: Sequence[str],
    rounds: int,
    closing: int,
    objective: Objective,
    goal: float,
) -> Counts | None:
    search = _searching(problem, table, order, rounds, closing)
    if search is None or not search.beats(goal, objective):
        return None
    if objective == "throughput":
        return search.least_token(search.least_stage() * (1 + SLACK))
    return search.least_token(np.inf)


class _Search:
    """Dynamic programming over the devices in order; index 0 is the head."""

    def __init__(
        self, problem: Problem, ways: list[Options], names: list[str], rounds: int, closing: int
    ) -> None:
        self._ways, self._names, self._rounds = ways, names, rounds
        self._layers = problem.model.n_layers - closing
        n = len(names)
        self._hop = np.zeros((n, n))
        self._carry = np.zeros((n, n))
        for a in range(n):
            for b in range(n):
                if a != b:
                    self._carry[a, b] = rounds * problem.slowest_link([(names[a], names[b])], 1)
                    self._hop[a, b] = rounds * problem.hop_s(names[a], names[b])

    def beats(self, goal: float, objective: Objective) -> bool:
        """Whether there is a ring better than `goal`."""
        if objective == "throughput":
            return self.least_stage() < goal * (1 - SLACK)
        return self._token(goal, np.inf) < goal * (1 - SLACK)

    def least_token(self, stage: float) -> Counts | None:
        """The quickest ring whose stages keep to `stage`."""
        limits = np.unique(np.concatenate([one.disk[np.isfinite(one.disk)] for one in self._ways]))
        low, high = 0, len(limits) - 1  # the least limit that leaves the disks no slower than the ring
        while low < high:
            middle = (low + high) // 2
            if self._token(float(limits[middle]), stage) <= limits[middle]:
                high = middle
            else:
                low = middle + 1
        tried = [float(limits[i]) for i in (low - 1, low) if i >= 0]
        best = min(tried, key=lambda limit: max(limit, self._token(limit, stage)))
        # where the disks set the pace, the limit itself is reached; below it the ring does
        return self._counts(best, stage)

    def least_stage(self) -> float:
        """The least possible slowest stage, devices' and links'."""
        least = [np.where(np.isfinite(one.stage), one.stage, np.inf).min(axis=1) for one in self._ways]
        n = self._layers
        reach = np.full((len(least), n + 1), np.inf)
        reach[0] = least[0][: n + 1]
        best = np.inf
        for j in range(1, len(least)):
            before = np.maximum(reach[:j], self._carry[:j, j, None]).min(axis=0)
            reach[j] = _combine(before, least[j][: n + 1], np.maximum)[0]
            best = min(best, max(reach[j, n], self._carry[j, 0]))
        return float(best)

    def _token(self, disk: float, stage: float) -> float:
        return self._run(disk, stage)[0]

    def _run(self, disk: float, stage: float) -> tuple[float, int, Counted, Counted]:
        n = self._layers
        busy = [one.least_busy(disk, stage)[: n + 1] for one in self._ways]
        allowed = np.where(self._carry <= stage, self._hop, np.inf)
        reach = np.full((len(busy), n + 1), np.inf)
        reach[0] = busy[0]
        came = np.zeros((len(busy), n + 1), dtype=np.int64)  # from which device
        took = np.zeros((len(busy), n + 1), dtype=np.int64)  # layers of this one
        for j in range(1, len(busy)):
            steps = reach[:j] + allowed[:j, j, None]
            before = steps.min(axis=0)
            came_before = steps.argmin(axis=0)
            reach[j], took[j] = _combine(before, busy[j], np.add)
            came[j] = came_before[np.arange(n + 1) - took[j]]
        closed = reach[:, n] + allowed[:, 0]
        closed[0] = np.inf
        last = int(closed.argmin())
        return float(closed[last]), last, came, took

    def _counts(self, disk: float, stage: float) -> Counts | None:
        total, at, came, took = self._run(disk, stage)
        if not np.isfinite(total):
            return None
        n, chosen = self._layers, []
        while at != 0:
            layers = int(took[at, n])
            chosen.append((at, layers))
            at, n = int(came[at, n]), n - layers
        chosen.append((0, n))
        chosen.reverse()
        deals = [
            self._ways[i].deal(layers, self._ways[i].best_way(layers, disk, stage)) for i, layers in chosen
        ]
        return Counts(self._rounds, tuple(self._names[i] for i, _ in chosen), tuple(deals))


def _combine(before: Grid, own: Grid, join: np.ufunc) -> tuple[Grid, Counted]:
    """For every n, the least join(before[n - m], own[m]) over m >= 1, and the m."""
    size = len(own)
    some = np.flatnonzero(np.isfinite(own))
    some = some[some >= 1]
    if some.size == 0:
        return np.full(size, np.inf), np.zeros(size, dtype=np.int64)
    index = np.arange(size)[:, None] - some[None, :]
    sums = np.where(index >= 0, join(before[np.maximum(index, 0)], own[some][None, :]), np.inf)
    at = sums.argmin(axis=1)
    return sums[np.arange(size), at], some[at]
