"""The best ring near a given one, by the true layers: dynamic programming over the places of cuts.

Layers are counted in units, from one allowed place to the next. With k rounds, the cuts between two devices
stand at the same count of units in every round, as nearly as can be: a cut at m units of a round's devices so
far is dealt out over the rounds, and so says where each of the k windows begins. A device's windows thus follow
from two numbers, where it begins and where it ends; what they cost is exact, by prefix sums. Only numbers near
those of the given ring are looked at, again from what was found as long as that gets better; where a model
has few units, near means all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edged.planning.cost import Problem, RingCost, ring_cost
from edged.planning.deal import Deal, hops_of_windows, spread
from edged.planning.plan import Hop, Objective
from edged.planning.shares import Counted, Grid, Layers, Shares, shares

WIDTH = 3  # units to either side of where a cut was
MOST_PASSES = 6
SLACK = 1e-12


@dataclass(frozen=True, slots=True)
class Near:
    """A ring to start from, by counts: of each device in order, the head first, without the closing window."""

    rounds: int
    order: tuple[str, ...]
    deals: tuple[Deal, ...]
    cuts: tuple[int, ...]  # units after each device but the last


def improved(
    problem: Problem, layers: Layers, start: Near, objective: Objective, width: int = WIDTH
) -> RingCost | None:
    """The best ring near `start`; None where none fits."""
    search = _Search(problem, layers, start)
    best: RingCost | None = None
    cuts, deals = start.cuts, start.deals
    for _ in range(MOST_PASSES):
        found = search.best(cuts, deals, objective, width)
        if found is None:
            break
        at, picked = found
        cost = ring_cost(problem, search.hops(at, picked))
        if not cost.fits or (best and cost.goal(objective) >= best.goal(objective) * (1 - 1e-9)):
            break
        best = cost
        if at == cuts:
            break
        cuts, deals = at, picked
    return best


class _Search:
    def __init__(self, problem: Problem, layers: Layers, start: Near) -> None:
        self.problem, self.layers = problem, layers
        self.names, self.rounds = start.order, start.rounds
        places = problem.of.places
        self.places = np.array(places[:-1], dtype=np.int64)
        self.closing = (places[-2], places[-1])
        self.units = len(places) - 2  # but for the closing one
        turns = spread(self.units, [self.units] * self.rounds)
        self.turns = np.concatenate([[0], np.cumsum(turns)])[:-1]  # where each round begins
        self.turn_units = np.array(turns, dtype=np.int64)
        self.unit = problem.model.n_layers / (len(places) - 1)  # layers, on average
        pairs = [(a, b) for a in self.names for b in self.names if a != b]
        self.hop = {ends: self.rounds * problem.hop_s(*ends) for ends in pairs}
        self.carry = {ends: self.rounds * problem.slowest_link([ends], 1) for ends in pairs}

    def at(self, count: Counted) -> Counted:
        """Where the cuts at `count` units stand, in layers: (..., rounds)."""
        each, more = np.divmod(count, self.rounds)
        units = each[..., None] + (np.arange(self.rounds) < more[..., None])
        return np.asarray(self.places[self.turns + np.minimum(units, self.turn_units)])

    def best(
        self, cuts: Sequence[int], deals: Sequence[Deal], objective: Objective, width: int
    ) -> tuple[tuple[int, ...], tuple[Deal, ...]] | None:
        bands = [np.zeros(1, dtype=np.int64)]
        for i, cut in enumerate(cuts):
            low = max(self.rounds * (i + 1), cut - width)
            high = min(self.units - self.rounds * (len(cuts) - i), cut + width)
            if low > high:
                return None
            bands.append(np.arange(low, high + 1))
        bands.append(np.array([self.units]))
        tables = [
            self._table(name, begin, end, deal)
            for name, begin, end, deal in zip(self.names, bands[:-1], bands[1:], deals, strict=True)
        ]
        picked = self._pick(tables, objective)
        if picked is None:
            return None
        chosen, disk, stage = picked
        found = [
            table.shares.deal(table.index(a, z), disk, stage)
            for table, (a, z) in zip(tables, chosen, strict=True)
        ]
        ends = tuple(int(band[z]) for band, (_, z) in zip(bands[1:-1], chosen, strict=False))
        return ends, tuple(found)

    def _table(self, name: str, begin: Counted, end: Counted, deal: Deal) -> _Table:
        first, last = np.meshgrid(np.arange(begin.size), np.arange(end.size), indexing="ij")
        pairs = (end[last] - begin[first] >= self.rounds).ravel()
        first, last = first.ravel()[pairs], last.ravel()[pairs]
        windows = self.at(begin[first]), self.at(end[last])
        total = (windows[1] - windows[0]).sum(axis=1)
        device = self.problem.devices[name]
        steps = np.arange(-2, 3) if device.gpu is not None and deal.gpu else np.zeros(1, dtype=np.int64)
        gpu = np.clip(deal.gpu + steps, 0, None)[None, :] + np.zeros_like(total)[:, None]
        if device.gpu is not None:
            gpu = np.concatenate([gpu, total[:, None]], axis=1)  # all of them, or none
            gpu = np.concatenate([gpu, np.zeros_like(total)[:, None]], axis=1)
        most = int(-(-total.max() // self.rounds)) if total.size else 0
        buffer = {deal.read_ahead + step for step in (-2, -1, 0, 1, 2, 3)} | {0, 1}
        if device.disk <= 0:
            buffer = {0}
        read_ahead = np.array(sorted(places for places in buffer if 0 <= places <= most), dtype=np.int64)
        closing = self.closing if name == self.problem.head else None
        found = shares(device, self.layers, windows[0], windows[1], gpu, read_ahead, closing)
        return _Table(found, first, last, (begin.size, end.size))

    def _pick(
        self, tables: Sequence[_Table], objective: Objective
    ) -> tuple[list[tuple[int, int]], float, float] | None:
        stage = np.inf
        if objective == "throughput":
            stage = self._least_stage(tables)
            if not np.isfinite(stage):
                return None
            stage *= 1 + SLACK
        limits = np.unique(np.concatenate([table.shares.disk.ravel() for table in tables]))
        limits = limits[np.isfinite(limits)]
        if limits.size == 0 or not np.isfinite(self._run(tables, float(limits[-1]), stage)[0]):
            return None
        low, high = 0, len(limits) - 1
        while low < high:
            middle = (low + high) // 2
            if self._run(tables, float(limits[middle]), stage)[0] <= limits[middle]:
                high = middle
            else:
                low = middle + 1
        tried = [float(limits[i]) for i in (low - 1, low) if i >= 0]
        disk = min(tried, key=lambda limit: max(limit, self._run(tables, limit, stage)[0]))
        return self._run(tables, disk, stage)[1], disk, stage

    def _run(
        self, tables: Sequence[_Table], disk: float, stage: float
    ) -> tuple[float, list[tuple[int, int]]]:
        """The least way round within both limits, and for each device where in its bands it begins and ends."""
        reach, came = np.zeros(1), []
        for i, table in enumerate(tables):
            if i and self.carry[self.names[i - 1], self.names[i]] > stage:
                return np.inf, []
            steps = reach[:, None] + table.grid(table.shares.least_busy(disk, stage))
            came.append(steps.argmin(axis=0))
            reach = steps.min(axis=0)
            if i:
                reach = reach + self.hop[self.names[i - 1], self.names[i]]
        if self.carry[self.names[-1], self.names[0]] > stage:
            return np.inf, []
        total, at, chosen = float(reach[0]) + self.hop[self.names[-1], self.names[0]], 0, []
        for table_came in reversed(came):
            before = int(table_came[at])
            chosen.append((before, at))
            at = before
        return total, chosen[::-1]

    def _least_stage(self, tables: Sequence[_Table]) -> float:
        reach = np.zeros(1)
        for table in tables:
            own = table.grid(table.shares.stage.min(axis=1))
            reach = np.maximum(reach[:, None], own).min(axis=0)
        around = zip(self.names, (*self.names[1:], self.names[0]), strict=True)
        return max(float(reach[0]), *(self.carry[ends] for ends in around))

    def hops(self, cuts: Sequence[int], deals: Sequence[Deal]) -> list[Hop]:
        counts = np.array([0, *cuts, self.units], dtype=np.int64)
        places = self.at(counts)
        held = []
        for i, (name, deal) in enumerate(zip(self.names, deals, strict=True)):
            windows = [(int(a), int(z)) for a, z in zip(places[i], places[i + 1], strict=True)]
            held.append(hops_of_windows(name, windows, deal))
        closing = Hop(
            device=self.names[0],
            first=self.closing[0],
            last=self.closing[1],
            gpu_layers=self.closing[1] - self.closing[0] if deals[0].closing_gpu else 0,
        )
        return [*(own[turn] for turn in range(self.rounds) for own in held), closing]


@dataclass(frozen=True)
class _Table:
    shares: Shares
    first: NDArray[np.int64]  # of each set: where in the band before the device
    last: NDArray[np.int64]  # and after it
    shape: tuple[int, int]

    def grid(self, values: Grid) -> Grid:
        found = np.full(self.shape, np.inf)
        found[self.first, self.last] = values
        return found

    def index(self, first: int, last: int) -> int:
        return int(np.flatnonzero((self.first == first) & (self.last == last))[0])
