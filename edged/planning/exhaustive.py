"""The best ring of a small problem, exactly: every way of dealing out the layers, in windows of any number.

The ring begins and ends at its head; else every place's worth of layers may be anybody's. Whatever a device's
windows hold on the GPU, stream, and have buffered is chosen window by window: a list of what is left of its
budgets grows by one window at a time, without what another way is no worse than in every respect.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product
from math import inf

from edged.planning.arrange import Way, Window, combine, ring_of
from edged.planning.cost import Problem, RingCost, Share, Visit, visit
from edged.planning.device_costs import DeviceCosts
from edged.planning.plan import Hop, Objective

MOST_RINGS = 1_100  # owners of windows: four devices with seven layers, or two with twelve
MOST_LAYERS = 16


def small_enough(problem: Problem) -> bool:
    units = len(problem.of.places) - 1
    rings = len(problem.devices) ** max(0, units - 2)
    return rings <= MOST_RINGS and problem.model.n_layers <= MOST_LAYERS


def best_ring(problem: Problem, objective: Objective) -> RingCost | None:
    """The best of all rings, of the head alone or of several devices; None where none fits."""
    held = _Held(problem)
    best, goal = None, inf
    for owners, cuts in _rings(problem):
        by_device = held.by_device(owners, cuts)
        if not _may_beat(problem, owners, by_device, objective, goal):
            continue
        found = combine(problem, owners, by_device, objective)
        if found is not None and found[0] < goal:
            goal, best = found[0], (owners, found[1])
    return None if best is None else ring_of(problem, *best)


def _rings(problem: Problem) -> Iterator[tuple[list[str], list[int]]]:
    """Owners of the windows, and the cuts between them."""
    places, head = problem.of.places, problem.head
    units = len(places) - 1
    yield [head], [0, places[-1]]
    if units < 3:
        return
    for inner in product(problem.devices, repeat=units - 2):
        owners, cuts = [head], [0]
        for unit, owner in enumerate((*inner, head), start=1):
            if owner != owners[-1]:
                owners.append(owner)
                cuts.append(places[unit])
        if len(owners) > 1:
            yield owners, [*cuts, places[-1]]


def _may_beat(
    problem: Problem,
    owners: Sequence[str],
    by_device: dict[str, tuple[Way, ...]],
    objective: Objective,
    goal: float,
) -> bool:
    """Whether it fits, and what it takes at least is less than `goal`."""
    if not all(by_device.values()):
        return False
    if objective == "throughput":
        return all(min(way.share.stage for way in found) < goal for found in by_device.values())
    busy = sum(found[0].share.busy for found in by_device.values())  # the first is the quickest
    return busy + sum(problem.hop_s(a, b) for a, b in pairwise(owners)) < goal


@dataclass(frozen=True, slots=True)
class _Taken:
    """What some windows of a device take together."""

    busy: float
    disk: float
    memory: float
    gpu_memory: float
    buffer: float
    hops: tuple[Hop, ...]
    visits: tuple[Visit, ...]

    def no_worse_than(self, other: _Taken, mixes: bool) -> bool:
        return (
            self.busy <= other.busy
            and self.disk <= other.disk
            and self.memory <= other.memory
            and self.gpu_memory <= other.gpu_memory
            and self.buffer <= other.buffer
            and (mixes or self.gpu_memory == 0 or other.gpu_memory > 0)
        )


_NOTHING = _Taken(0.0, 0.0, 0.0, 0.0, 0.0, (), ())


class _Held:
    """Remembers how devices can hold windows."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._ways = cache(self._find_ways)
        self._taken = cache(self._find_taken)
        self._alternatives = cache(self._find_alternatives)

    def by_device(self, owners: Sequence[str], cuts: Sequence[int]) -> dict[str, tuple[Way, ...]]:
        windows: dict[str, tuple[Window, ...]] = {}
        for i, owner in enumerate(owners):
            windows[owner] = (*windows.get(owner, ()), (cuts[i], cuts[i + 1]))
        return {device: self._ways(device, own) for device, own in windows.items()}

    def _find_ways(self, device: str, windows: tuple[Window, ...]) -> tuple[Way, ...]:
        """By busy time, each with less disk time than those before."""
        costs, of = self._problem.devices[device], self._problem.of
        stored = sum(of.weights.of(first, last) for first, last in windows)
        stored += of.model.output_bytes if windows[-1][1] == of.model.n_layers else 0
        found: list[Way] = []
        for taken in self._taken(device, windows):
            way = Way(taken.hops, Share(costs, taken.visits, stored))
            if way.share.fits and (not found or way.share.disk < found[-1].share.disk):
                found.append(way)
        return tuple(found)

    def _find_taken(self, device: str, windows: tuple[Window, ...]) -> list[_Taken]:
        """What the windows can take, by busy time and then disk time."""
        if not windows:
            return [_NOTHING]
        costs = self._problem.devices[device]
        joined = [
            one
            for before, own in product(
                self._taken(device, windows[:-1]), self._alternatives(device, *windows[-1])
            )
            if _within(costs, one := _join(before, own))
        ]
        return _not_beaten(joined, costs.mixes)

    def _find_alternatives(self, device: str, first: int, last: int) -> list[_Taken]:
        """Of one window."""
        costs, of = self._problem.devices[device], self._problem.of
        n = last - first
        ends = last == of.model.n_layers and costs.disk > 0 and of.model.can_stream_output
        found = []
        for gpu in range(n + 1) if costs.gpu is not None else (0,):
            for streamed in range(n - gpu + 1) if costs.disk > 0 else (0,):
                for places in range(1, streamed + 1) if streamed else (0,):
                    for output in (False, True) if ends and not gpu else (False,):
                        hop = Hop(
                            device=device,
                            first=first,
                            last=last,
                            gpu_layers=gpu,
                            streamed=streamed,
                            read_ahead=places,
                            streams_output=output,
                        )
                        own = visit(costs, of, hop)
                        taken = _Taken(
                            busy=own.compute + own.stall,
                            disk=own.disk,
                            memory=own.memory,
                            gpu_memory=own.gpu_memory,
                            buffer=own.buffer,
                            hops=(hop,),
                            visits=(own,),
                        )
                        if own.can_run and _within(costs, taken):
                            found.append(taken)
        return _not_beaten(found, costs.mixes)


def _join(one: _Taken, other: _Taken) -> _Taken:
    return _Taken(
        busy=one.busy + other.busy,
        disk=one.disk + other.disk,
        memory=one.memory + other.memory,
        gpu_memory=one.gpu_memory + other.gpu_memory,
        buffer=max(one.buffer, other.buffer),
        hops=one.hops + other.hops,
        visits=one.visits + other.visits,
    )


def _within(costs: DeviceCosts, taken: _Taken) -> bool:
    return (
        taken.memory + taken.buffer <= costs.profile.memory_budget
        and taken.gpu_memory <= costs.gpu_budget
        and taken.disk < inf
        and (costs.mixes or taken.buffer == 0 or taken.gpu_memory == 0)
    )


def _not_beaten(found: list[_Taken], mixes: bool) -> list[_Taken]:
    kept: list[_Taken] = []
    for one in sorted(found, key=lambda taken: (taken.busy, taken.disk, taken.memory)):
        if not any(other.no_worse_than(one, mixes) for other in kept):
            kept.append(one)
    return kept
