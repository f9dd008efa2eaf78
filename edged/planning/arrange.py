"""Every sensible way for one device to hold given windows, whatever their layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from edged.planning.cost import Problem, RingCost, Share, ring_cost, share
from edged.planning.deal import Deal, hops_of_windows
from edged.planning.device_costs import DeviceCosts, ModelCosts
from edged.planning.plan import Hop, Objective

Window = tuple[int, int]  # layers [first, last)
MOST_TRIED = 16  # layers of which every arrangement is tried


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
    name = device.profile.device
    n = sum(last - first for first, last in windows)
    # Which layers are buffered, and which lie on the GPU, depends on how many are streamed. Where they differ,
    # another number may do better than the least; for a window of many that is much to try for little.
    thorough = not of.uniform and n <= MOST_TRIED
    quicker = not thorough and _gpu_always_pays(device, of)
    for closing_gpu in (True, False) if closing and device.gpu is not None else (False,):
        tail: tuple[Hop, ...] = ()
        if closing:
            on_gpu = closing[1] - closing[0] if closing_gpu else 0
            tail = (Hop(device=name, first=closing[0], last=closing[1], gpu_layers=on_gpu),)
        most_places = -(-n // len(windows)) if device.disk > 0 else 0
        for places in range(most_places + 1):
            some = False
            for gpu in _gpu_counts(device, of, n):
                for hops in _by_streamed(name, windows, Deal(n, gpu, 0, places)):
                    all_hops = (*hops, *tail)
                    cost = share(device, of, all_hops)
                    if cost.fits:
                        some = True
                        yield Way(all_hops, cost)
                        if not thorough:
                            break  # more streamed layers would be slower
                if some and quicker:
                    break  # fewer layers on the GPU would be slower
            if not some and places > 0 and not thorough:
                break  # a larger buffer does not fit either
            if some and places == 0 and quicker:
                break  # nothing needs streaming


def _by_streamed(name: str, windows: Sequence[Window], deal: Deal) -> Iterator[tuple[Hop, ...]]:
    """The hops with ever more streamed layers, as many at least as the buffer has places in every window."""
    if deal.read_ahead == 0:
        yield hops_of_windows(name, windows, deal)
        return
    least = (deal.read_ahead - 1) * len(windows) + 1
    for streamed in range(least, deal.layers - deal.gpu + 1):
        yield hops_of_windows(name, windows, Deal(deal.layers, deal.gpu, streamed, deal.read_ahead))


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
    problem: Problem, order: Sequence[Hop], by_device: dict[str, tuple[Way, ...]], objective: Objective
) -> RingCost | None:
    """The best ring that picks one way per device. `order`: any hops in ring order, for who comes when."""
    if not all(by_device.values()):
        return None
    limits = sorted({way.share.disk for found in by_device.values() for way in found})
    best: RingCost | None = None
    for limit in limits:
        picked: dict[str, Way] = {}
        for device, found in by_device.items():
            within = [way for way in found if way.share.disk <= limit]
            if not within:
                break
            picked[device] = min(
                within, key=lambda way: way.share.busy if objective == "latency" else way.share.stage
            )
        else:
            own = {device: iter(way.hops) for device, way in picked.items()}
            cost = ring_cost(problem, [next(own[hop.device]) for hop in order])
            if best is None or cost.goal(objective) < best.goal(objective):
                best = cost
    return best
