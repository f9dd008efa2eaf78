"""Devices that a ring does without: why, and what the ring would take with them."""

from __future__ import annotations

from edged.planning.cost import Problem, RingCost
from edged.planning.device_costs import DeviceCosts
from edged.planning.plan import LeftOut, Objective
from edged.planning.uneven import Windows, snapped, without_empty

GIB = 2**30
LEAST_SAVED = 0.05  # milliseconds that show in print
MOST_TRIED = 2_000  # rings, for all devices together


def left_out(ring: RingCost, objective: Objective) -> tuple[LeftOut, ...]:
    """Every device that is not in `ring`, with the cheapest way to give it a little all the same."""
    problem = ring.problem
    return tuple(
        _left_out(problem, ring, costs, objective)
        for device, costs in problem.devices.items()
        if device not in ring.shares
    )


def _left_out(problem: Problem, ring: RingCost, device: DeviceCosts, objective: Objective) -> LeftOut:
    name = device.profile.device
    if not problem.model.boundaries:
        why = problem.model.whole_because or "it runs whole only"
        return LeftOut(device=name, reason=f"the model cannot be shared: {why}")
    with_it = with_device(problem, ring, name, objective)
    if with_it is None:
        return LeftOut(device=name, reason=_no_room(problem, device))
    cost = 1e3 * (with_it.goal(objective) - ring.goal(objective))
    what = "a token" if objective == "latency" else "a token of many streams"
    if cost <= 0:  # only a solver that does not look at this leaves such a device out
        saving = f"{-cost:.1f} ms {what}" if cost < -LEAST_SAVED else "next to nothing"
        return LeftOut(device=name, reason=f"it would save {saving}", would_cost_ms=cost)
    layers = sum(hop.n_layers for hop in with_it.hops if hop.device == name)
    share = f"{layers} layer{'s' if layers > 1 else ''} on it would cost {cost:.1f} ms more {what}"
    return LeftOut(device=name, reason=f"the ring is faster without it: {share}", would_cost_ms=cost)


def with_device(problem: Problem, ring: RingCost, name: str, objective: Objective) -> RingCost | None:
    """The best ring in which the device takes one place's worth of layers from a neighbour."""
    windows = Windows(problem, objective)
    places = problem.of.places
    owners = [hop.device for hop in ring.hops]
    cuts = [*(hop.first for hop in ring.hops), problem.model.n_layers]
    if len(owners) == 1 and len(places) > 2:  # a ring must close at its head
        owners, cuts = [owners[0]] * 2, [0, places[-2], problem.model.n_layers]
    best: RingCost | None = None
    others = len(problem.devices) - len(ring.shares)
    step = 1 + 2 * others * len(cuts) // MOST_TRIED
    for at in range(1, len(cuts) - 1, step):
        here = places.index(cuts[at])
        for first, last in ((here - 1, here), (here, here + 1)):
            if first < 1 or last > len(places) - 2:
                continue
            inner = [
                *(min(cut, places[first]) for cut in cuts[: at + 1]),
                *(max(cut, places[last]) for cut in cuts[at:]),
            ]
            tried = without_empty([*owners[:at], name, *owners[at:]], snapped(inner, places))
            if tried[0][0] != problem.head or tried[0][-1] != problem.head:
                continue
            cost = windows.ring(*tried)
            if cost is not None and (best is None or cost.goal(objective) < best.goal(objective)):
                best = cost
    return best


def _no_room(problem: Problem, device: DeviceCosts) -> str:
    of = problem.of
    layer = max(problem.model.layer_bytes) + of.cache.prefix[-1] / problem.model.n_layers + of.overhead
    has = device.profile.memory_budget
    if has >= layer:
        disk = f"on its disk ({device.profile.disk_free / GIB:.2f} GiB)"
        return f"its share fits neither into its memory ({has / GIB:.2f} GiB) nor {disk}"
    needs = f"{layer / GIB:.2f} GiB with its buffers"
    return f"its memory ({has / GIB:.2f} GiB) does not hold one layer ({needs})"
