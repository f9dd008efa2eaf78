"""The best ring near a given one, by the true layers: dynamic programming over cuts, then cut by cut.

Layers are counted in units, from one allowed place to the next. First the cuts between two devices stand at
the same count of units in every round, as nearly as can be: a cut at m units of a round's devices so far is
dealt out over the rounds, and so says where each of the k windows begins. A device's windows thus follow from
two numbers; what they cost is exact, by prefix sums. Only numbers near those of the given ring are looked at,
again from what was found as long as that gets better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from edged.planning.cost import Problem, RingCost, ring_cost
from edged.planning.deal import Deal, hops_of_windows, spread
from edged.planning.nearby import ask
from edged.planning.plan import Hop, Objective
from edged.planning.shares import Counted, Grid, Holder, Shares

WIDTH = 3  # units, at least, to either side of where a cut was
MOST_ROWS = 200  # of windows looked at together, above the least width
MOST_PASSES = 4
SLACK = 1e-12


@dataclass(frozen=True, slots=True)
class Near:
    """A ring to start from, by counts: of each device in order, the head first; no closing window."""

    rounds: int
    order: tuple[str, ...]
    deals: tuple[Deal, ...]
    cuts: tuple[int, ...]  # units after each device but the last


@dataclass(frozen=True, slots=True)
class _Found:
    cuts: tuple[int, ...]
    deals: tuple[Deal, ...]
    goal: float


def improved(problem: Problem, start: Near, objective: Objective) -> RingCost | None:
    """The best ring near `start`; None where none fits."""
    search = _Search(problem, start)
    best: _Found | None = None
    cuts, deals = start.cuts, start.deals
    for _ in range(MOST_PASSES):
        found = search.best(cuts, deals, objective)
        if found is None or (best is not None and found.goal >= best.goal * (1 - 1e-9)):
            break
        best = found
        if found.cuts == cuts:
            break
        cuts, deals = found.cuts, found.deals
    if best is None:
        return None
    cost = ring_cost(problem, hops(search.holder, search.ends(best.cuts), best.deals))
    return cost if cost.fits else None


def hops(holder: Holder, ends: Counted, deals: Sequence[Deal]) -> list[Hop]:
    """ends: (rounds * devices + 1,), where windows end, in layers."""
    n = len(holder.names)
    held = [
        hops_of_windows(name, [(int(ends[at]), int(ends[at + 1])) for at in range(i, len(ends) - 1, n)], deal)
        for i, (name, deal) in enumerate(zip(holder.names, deals, strict=True))
    ]
    closing = deals[0].closing.hop(holder.names[0], holder.tails[0], holder.problem.model.n_layers)
    return [*(own[turn] for turn in range(len(held[0])) for own in held), closing]


class _Search:
    def __init__(self, problem: Problem, start: Near) -> None:
        self.holder = Holder(problem, start.order)
        self.rounds, n = start.rounds, len(start.order)
        places = problem.of.places
        self.places = np.array(places[:-1], dtype=np.int64)
        self.units = len(places) - 2  # but for the closing one
        turns = np.array(spread(self.units, [self.units] * self.rounds), dtype=np.int64)
        self.width = max(WIDTH, int((MOST_ROWS / n) ** 0.5) // 2)
        self.turns, self.turn_units = np.cumsum(turns) - turns, turns  # where rounds begin, and their lengths
        around = [(start.order[i], start.order[(i + 1) % n]) for i in range(n)]
        self.way = self.rounds * sum(problem.hop_s(*ends) for ends in around)
        self.links = self.rounds * max(problem.slowest_link([ends], 1) for ends in around)

    def at(self, count: Counted) -> Counted:
        """Where the cuts at `count` units stand, in layers: (..., rounds)."""
        each, more = np.divmod(count, self.rounds)
        units = each[..., None] + (np.arange(self.rounds) < more[..., None])
        return np.asarray(self.places[self.turns + np.minimum(units, self.turn_units)])

    def ends(self, cuts: Sequence[int]) -> Counted:
        """Of all windows in ring order, 0 before them: (rounds * devices + 1,)."""
        at = self.at(np.array([*cuts, self.units], dtype=np.int64))  # (devices, rounds)
        return np.concatenate([np.zeros(1, dtype=np.int64), at.T.ravel()])

    def best(self, cuts: Sequence[int], deals: Sequence[Deal], objective: Objective) -> _Found | None:
        bands = [np.zeros(1, dtype=np.int64)]
        for i, cut in enumerate(cuts):
            low = max(self.rounds * (i + 1), cut - self.width)
            high = min(self.units - self.rounds * (len(cuts) - i), cut + self.width)
            if low > high:
                return None
            bands.append(np.arange(low, high + 1))
        bands.append(np.array([self.units]))
        pairs = [np.argwhere(end[None, :] - begin[:, None] >= self.rounds) for begin, end in pairwise(bands)]
        if not all(pair.size for pair in pairs):
            return None
        device = np.repeat(np.arange(len(pairs)), [len(pair) for pair in pairs])
        first = np.concatenate([band[pair[:, 0]] for band, pair in zip(bands[:-1], pairs, strict=True)])
        last = np.concatenate([band[pair[:, 1]] for band, pair in zip(bands[1:], pairs, strict=True)])
        shares = self.holder.shares(ask(self.holder, device, self.at(first), self.at(last), deals))
        picked = _Picker(self, bands, pairs, shares).pick(objective)
        if picked is None:
            return None
        goal, chosen, disk, stage = picked
        starts = np.cumsum([0, *(len(pair) for pair in pairs)])
        found = []
        for start, pair, (a, z) in zip(starts, pairs, chosen, strict=False):
            row = int(np.flatnonzero((pair[:, 0] == a) & (pair[:, 1] == z))[0])
            found.append(shares.deal(int(start) + row, disk, stage))
        ends = tuple(int(band[z]) for band, (_, z) in zip(bands[1:-1], chosen, strict=False))
        return _Found(ends, tuple(found), goal)


class _Picker:
    """Which windows within the bands are best together."""

    def __init__(
        self, search: _Search, bands: Sequence[Counted], pairs: Sequence[Counted], shares: Shares
    ) -> None:
        self._search, self._bands, self._shares = search, bands, shares
        self._device = np.repeat(np.arange(len(pairs)), [len(pair) for pair in pairs])
        pair = np.concatenate(pairs)
        self._at = self._device, pair[:, 0], pair[:, 1]
        widest = max(len(band) for band in bands)
        self._shape = (len(pairs), widest, widest)

    def pick(self, objective: Objective) -> tuple[float, list[tuple[int, int]], float, float] | None:
        """The goal, where in its bands each device begins and ends, and the limits on disk and stage."""
        stage = np.inf
        if objective == "throughput":
            stage = self._least_stage()
            if not np.isfinite(stage):
                return None
            stage *= 1 + SLACK
        limits = np.unique(self._shares.disk)
        limits = limits[np.isfinite(limits)]
        if limits.size == 0 or not np.isfinite(self._run(float(limits[-1]), stage)[0]):
            return None
        low, high = 0, len(limits) - 1
        while low < high:
            middle = (low + high) // 2
            if self._run(float(limits[middle]), stage)[0] <= limits[middle]:
                high = middle
            else:
                low = middle + 1
        goals = {
            max(float(limits[i]), self._run(float(limits[i]), stage)[0]): float(limits[i])
            for i in (low - 1, low)
            if i >= 0
        }
        goal = min(goals)
        chosen = self._run(goals[goal], stage)[1]
        return (goal if objective == "latency" else stage), chosen, goals[goal], stage

    def _grid(self, values: Grid) -> Grid:
        found = np.full(self._shape, np.inf)
        found[self._at] = values
        return found

    def _run(self, disk: float, stage: float) -> tuple[float, list[tuple[int, int]]]:
        """The least way round within both limits, and the windows that take it."""
        own = self._grid(self._shares.least_busy(disk, stage))
        reach, came = np.full(self._shape[1], np.inf), []
        reach[0] = 0.0
        for grid in own:
            steps = reach[:, None] + grid
            came.append(steps.argmin(axis=0))
            reach = steps.min(axis=0)
        at, chosen = 0, []
        for before in reversed(came):
            chosen.append((int(before[at]), at))
            at = int(before[at])
        return float(reach[0]) + self._search.way, chosen[::-1]

    def _least_stage(self) -> float:
        reach = np.full(self._shape[1], np.inf)
        reach[0] = 0.0
        for grid in self._grid(self._shares.stage.min(axis=1)):
            reach = np.maximum(reach[:, None], grid).min(axis=0)
        return max(float(reach[0]), self._search.links)
