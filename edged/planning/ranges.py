"""The best ring of one round, exactly, where layers differ: dynamic programming over the places of cuts.

It looks at every range of layers on every device, which is why it is for models with few places only.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edged.planning.arrange import Way, combine, ring_of, ways
from edged.planning.cost import Problem, RingCost
from edged.planning.plan import Objective
from edged.planning.ring_order import orders

Grid = NDArray[np.float64]

MOST_RANGES = 600  # on all devices together: a few hundredths of a second


def small_enough(problem: Problem) -> bool:
    places = len(problem.of.places)
    return len(problem.cluster.devices) * places * (places - 1) // 2 <= MOST_RANGES


def best_ring(problem: Problem, objective: Objective) -> RingCost | None:
    """The best ring of one round over two devices or more; None where none fits."""
    if len(problem.of.places) < 3 or len(problem.cluster.devices) < 2:
        return None
    ranges = _Ranges(problem)
    found = [
        cost for order in orders(problem) if (cost := _Search(ranges, order, objective).best()) is not None
    ]
    return min(found, key=lambda cost: cost.goal(objective), default=None)


class _Ranges:
    """Ways of every device for every range of layers it could have."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        places = problem.of.places
        self.places = places[:-1]  # the closing window begins at the last of these
        closing = (places[-2], places[-1])
        last = len(self.places)
        self.ways: dict[str, dict[tuple[int, int], tuple[Way, ...]]] = {}
        for device, costs in problem.devices.items():
            is_head = device == problem.head
            own: dict[tuple[int, int], tuple[Way, ...]] = {}
            for a in range(1 if is_head else last):
                for z in range(a + 1, last):
                    window = (self.places[a], self.places[z])
                    own[a, z] = ways(costs, problem.of, (window,), closing if is_head else None)
            self.ways[device] = own

    def limits(self) -> list[float]:
        return sorted(
            {way.share.disk for own in self.ways.values() for found in own.values() for way in found}
        )


class _Search:
    def __init__(self, ranges: _Ranges, order: Sequence[str], objective: Objective) -> None:
        self._ranges, self._objective = ranges, objective
        self._names = [ranges.problem.head, *order]

    def best(self) -> RingCost | None:
        limits = self._ranges.limits()
        if not limits:
            return None
        if self._objective == "throughput":
            return self._ring(limits[-1])
        low, high = 0, len(limits) - 1
        while low < high:
            middle = (low + high) // 2
            if self._run(limits[middle])[0] <= limits[middle]:
                high = middle
            else:
                low = middle + 1
        found = [self._ring(limits[i]) for i in (low - 1, low) if i >= 0]
        return min((cost for cost in found if cost is not None), key=lambda cost: cost.token, default=None)

    def _run(self, limit: float) -> tuple[float, dict[tuple[int, int], tuple[int, int]]]:
        """The least goal with disks within `limit`, and for (device, end of its range) where it came from."""
        problem, ranges = self._ranges.problem, self._ranges
        n, size = len(self._names), len(ranges.places)
        latency = self._objective == "latency"
        reach = np.full((n, size), np.inf)  # [device, place its range ends at]
        came: dict[tuple[int, int], tuple[int, int]] = {}
        for j, name in enumerate(self._names):
            for (a, z), found in ranges.ways[name].items():
                own = min(
                    (
                        way.share.busy if latency else way.share.stage
                        for way in found
                        if way.share.disk <= limit
                    ),
                    default=np.inf,
                )
                if not np.isfinite(own):
                    continue
                if j == 0:
                    reach[0, z] = own
                    continue
                for i in range(j):
                    if not np.isfinite(reach[i, a]):
                        continue
                    total = self._join(reach[i, a], own, self._names[i], name)
                    if total < reach[j, z]:
                        reach[j, z] = total
                        came[j, z] = (i, a)
        best, at = np.inf, 0
        for j in range(1, n):
            total = self._join(reach[j, size - 1], 0.0, self._names[j], problem.head)
            if total < best:
                best, at = total, j
        came[n, size - 1] = (at, size - 1)
        return float(best), came

    def _join(self, before: float, own: float, source: str, target: str) -> float:
        problem = self._ranges.problem
        if self._objective == "latency":
            return before + own + problem.hop_s(source, target)
        return max(before, own, problem.frame / problem.cluster.link(source, target).bandwidth)

    def _ring(self, limit: float) -> RingCost | None:
        best, came = self._run(limit)
        if not np.isfinite(best):
            return None
        places = self._ranges.places
        at, end = came[len(self._names), len(places) - 1]
        owners, ends = [], [end]
        while at != 0:
            owners.append(self._names[at])
            at, end = came[at, end]
            ends.append(end)
        owners.append(self._names[0])
        owners.reverse()
        ends = [0, *reversed(ends)]
        by_device = {
            owner: self._ranges.ways[owner][a, z]
            for owner, (a, z) in zip(owners, pairwise(ends), strict=True)
        }
        owners.append(owners[0])
        picked = combine(self._ranges.problem, owners, by_device, self._objective)
        return None if picked is None else ring_of(self._ranges.problem, owners, picked[1])
