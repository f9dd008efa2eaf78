"""Every sensible way for one device to hold given windows, whatever their layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from edged.planning.cost import Problem, RingCost, Share, ring_cost, share
from edged.planning.deal import Closing, Deal, closings, hops_of_windows
from edged.planning.device_costs import DeviceCosts, ModelCosts
from edged.planning.plan import Hop, Objective
from edged.planning.streamed import READ_AHEAD

Window = tuple[int, int]  # layers [first, last)
_Tail = tuple[tuple[Hop, ...], bool]  # the closing window, and whether the output matrix is streamed
MOST_TRIED = 7  # layers of which every arrangement is tried


@dataclass(frozen=True, slots=True)
class Way:
    """One way, with its hops in order."""

    hops: tuple[Hop, ...]
    share: Share


def ways(
    device: DeviceCosts, of: ModelCosts, windows: Sequence[Window], closing: Window | None = None
) -> tuple[Way, ...]:
    """The ways that fit and that no other is better than in both busy and disk time; () if none fits."""
    found: list[Way] = []
    for way in _all_ways(device, of, windows, closing):
        if any(_as_good(other.share, way.share) for other in found):
            continue
        found = [other for other in found if not _as_good(way.share, other.share)]
        found.append(way)
    return tuple(found)


def _as_good(one: Share, other: Share) -> bool:
    return one.busy <= other.busy and one.disk <= other.disk


def _all_ways(
    device: DeviceCosts, of: ModelCosts, windows: Sequence[Window], closing: Window | None
) -> Iterator[Way]:
    n = sum(last - first for first, last in windows)
    # Which layers are buffered, and which lie on the GPU, depends on how many are streamed. Where they
    # differ, another number may do better than the least; in a large window that is much to try for little.
    thorough = not of.uniform and n <= MOST_TRIED
    quicker = not thorough and (not of.uniform or _gpu_always_pays(device, of))
    for tail in _tails(device, of, windows, closing):
        most_places = min(READ_AHEAD, -(-n // len(windows))) if device.disk > 0 else 0
        for places in range(most_places + 1):
            some, streams = False, places > 0 or any(hop.streamed for hop in tail[0])
            for gpu in _gpu_counts(device, of, n) if device.mixes or not streams else (0,):
                for way in _by_streamed(device, of, windows, tail, Deal(n, gpu, 0, places)):
                    some = True
                    yield way
                    if not thorough:
                        break  # more streamed layers would be slower
                if some and quicker:
                    break  # fewer layers on the GPU are slower, or hardly quicker
            if not some and places > 0 and not thorough:
                break  # a larger buffer does not fit either
            if some and places == 0 and quicker:
                break  # nothing needs streaming


def _tails(
    device: DeviceCosts, of: ModelCosts, windows: Sequence[Window], closing: Window | None
) -> Iterator[_Tail]:
    """How the closing window is held; where the last window is one like the others, its output matrix."""
    if closing is not None:
        for how in closings(device, of):
            yield (how.hop(device.profile.device, *closing),), how.output
        return
    yield (), False
    if windows[-1][1] == of.model.n_layers and Closing(output=True) in closings(device, of):
        yield (), True


def _by_streamed(
    device: DeviceCosts, of: ModelCosts, windows: Sequence[Window], tail: _Tail, deal: Deal
) -> Iterator[Way]:
    """The ways that fit with ever more streamed layers; in some window as many as the buffer has places."""
    name, largest = device.profile.device, max(of.model.layer_bytes)
    closing, output = tail
    streamed = (deal.read_ahead - 1) * len(windows) + 1 if deal.read_ahead else 0
    most = deal.layers - deal.gpu if deal.read_ahead else 0
    while streamed <= most:
        dealt = Deal(deal.layers, deal.gpu, streamed, deal.read_ahead)
        hops = (*hops_of_windows(name, windows, dealt), *closing)
        if output and hops[-1].gpu_layers == 0:
            hops = (*hops[:-1], hops[-1].model_copy(update={"streams_output": True}))
        cost = share(device, of, hops)
        if cost.fits:
            yield Way(hops, cost)
        elif cost.gpu_memory > device.gpu_budget and deal.layers > MOST_TRIED:
            return  # which layers lie on the GPU hardly changes that
        excess = cost.memory - device.profile.memory_budget
        streamed += max(1, int(excess // largest))  # one more frees no more than that


def _gpu_counts(device: DeviceCosts, of: ModelCosts, n: int) -> Iterable[int]:
    if device.gpu is None:
        return (0,)
    smallest = min(of.model.layer_bytes)
    return range(min(n, int(device.gpu_budget // smallest) if smallest else n), -1, -1)


def _gpu_always_pays(device: DeviceCosts, of: ModelCosts) -> bool:
    """Whether one more layer on the GPU is quicker even if the GPU must be started for it alone."""
    if device.gpu is None:
        return True
    if device.gpu_shares:
        return False  # its compute buffer is taken from the layers' memory
    cpu, gpu = device.cpu.decode, device.gpu.decode
    return all(cpu.of(i, i + 1) >= gpu.of(i, i + 1) + device.gpu.run for i in range(of.model.n_layers))


def combine(
    problem: Problem, owners: Sequence[str], by_device: dict[str, tuple[Way, ...]], objective: Objective
) -> tuple[float, dict[str, Way]] | None:
    """The best goal that picks one way per device, and the picks. `owners`: of the hops, in ring order.

    The ring's time falls as the disks are allowed more, so the best limit is found by bisection.
    """
    if not all(by_device.values()):
        return None
    links = tuple(pairwise(owners))
    if objective == "throughput":
        picked = {device: min(found, key=lambda way: way.share.stage) for device, found in by_device.items()}
        slowest = max(way.share.stage for way in picked.values())
        return max(slowest, problem.slowest_link(links, 1)), picked
    way_round = sum(problem.hop_s(a, b) for a, b in links)
    limits = sorted({way.share.disk for found in by_device.values() for way in found})
    least = max(min(way.share.disk for way in found) for found in by_device.values())
    limits = [limit for limit in limits if limit >= least]

    def pick(limit: float) -> tuple[float, dict[str, Way]]:
        picked = {
            device: min((way for way in found if way.share.disk <= limit), key=lambda way: way.share.busy)
            for device, found in by_device.items()
        }
        busy = sum(way.share.busy for way in picked.values()) + way_round
        return max(busy, *(way.share.disk for way in picked.values())), picked

    low, high = 0, len(limits) - 1
    while low < high:
        middle = (low + high) // 2
        if pick(limits[middle])[0] <= limits[middle]:
            high = middle
        else:
            low = middle + 1
    return min((pick(limits[i]) for i in (low - 1, low) if i >= 0), key=lambda one: one[0])


def ring_of(problem: Problem, owners: Sequence[str], picked: dict[str, Way]) -> RingCost:
    """The ring in which each device does what was picked for it."""
    own = {device: iter(way.hops) for device, way in picked.items()}
    return ring_cost(problem, [next(own[owner]) for owner in owners])
