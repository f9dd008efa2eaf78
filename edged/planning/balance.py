"""The simple planner: a balanced pipeline within everyone's memory.

Each device gets layers in proportion to its measured speed, as far as its memory allows, so that the
slowest stage of the ring is as fast as it can be. Pure: no clock, no socket.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edged.errors import PlanError
from edged.planning.context import decided, for_ring
from edged.planning.footprint import kv_bytes_per_layer, share_bytes, window_overhead
from edged.planning.plan import ContextOptions, Expectation, Hop, LeftOut, Plan
from edged.planning.profile import DeviceProfile, ModelProfile

GIB = 2**30
AS_FAST = 0.8  # of the fastest: a short measurement on a busy machine errs by as much


@dataclass(frozen=True, slots=True)
class _Share:
    device: DeviceProfile
    most: int  # layers that fit in its memory
    seconds: float  # prefill seconds per layer and token


def plan_balanced(
    *,
    epoch: int,
    head: str,
    devices: Sequence[DeviceProfile],
    model: ModelProfile,
    context: ContextOptions,
) -> Plan:
    """Ring over `devices` (the head among them) for `model`. Raises PlanError with the numbers.

    `context` is a wish: see `edged.planning.context` for what becomes of it.
    """
    by_id = {device.device: device for device in devices}
    if head not in by_id:
        raise PlanError(f"the head {head} is not among the devices")
    workers = sorted((d for d in devices if d.device != head), key=lambda d: d.device)
    if not model.boundaries:
        why = model.whole_because or "this model runs whole only"
        return _alone(epoch, by_id[head], workers, model, context, why=why)
    if not workers or model.n_layers < 3:
        return _alone(epoch, by_id[head], workers, model, context, why="the model has too few layers")

    shares = [
        _share(device, model, for_ring(context), is_head=device.device == head)
        for device in [by_id[head], *workers]
    ]
    counts = _balance(_without_noise(shares), model)
    return _ring(epoch, shares, counts, model, context)


def _share(device: DeviceProfile, model: ModelProfile, context: ContextOptions, *, is_head: bool) -> _Share:
    per_layer = max(model.layer_bytes) + kv_bytes_per_layer(model, context)
    room = device.memory_budget - window_overhead(model, context, yields_logits=False)
    if is_head:  # it holds the last window too
        room -= window_overhead(model, context, yields_logits=True) + model.output_memory
    # two operations per weight; a weight takes about bytes / layer_bytes of a layer whatever its type
    return _Share(device, max(0, int(room // per_layer)), 1.0 / device.flops)


def _without_noise(shares: list[_Share]) -> list[_Share]:
    """Devices that are nearly as fast as the fastest count as equally fast."""
    fastest = min(share.seconds for share in shares)
    return [
        replace(share, seconds=fastest) if share.seconds * AS_FAST <= fastest else share for share in shares
    ]


def _balance(shares: list[_Share], model: ModelProfile) -> list[int]:
    """Layers per device, the head's first: the least possible bottleneck, found by bisection."""
    least = [2, *(0 for _ in shares[1:])]  # the ring begins and ends at the head
    if shares[0].most < least[0]:
        raise PlanError(_too_small(shares, model, f"{shares[0].device.name} cannot hold two layers as head"))
    if sum(share.most for share in shares) < model.n_layers:
        raise PlanError(_too_small(shares, model, "the cluster's memory does not hold the model"))

    def counts_within(bottleneck: float) -> list[int]:
        return [
            max(low, min(share.most, int(bottleneck / share.seconds)))
            for share, low in zip(shares, least, strict=True)
        ]

    candidates = sorted(
        {n * share.seconds * (1 + 1e-9) for share in shares for n in range(1, model.n_layers + 1)}
    )
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        if sum(counts_within(candidates[middle])) >= model.n_layers:
            high = middle
        else:
            low = middle + 1
    counts = counts_within(candidates[low])
    while (excess := sum(counts) - model.n_layers) > 0:  # give back where it shortens the slowest stage most
        busiest = max(
            (i for i in range(len(counts)) if counts[i] > least[i]),
            key=lambda i: counts[i] * shares[i].seconds,
        )
        counts[busiest] -= min(excess, 1)
    return counts


def _ring(
    epoch: int, shares: list[_Share], counts: list[int], model: ModelProfile, context: ContextOptions
) -> Plan:
    in_ring = [(share, count) for share, count in zip(shares[1:], counts[1:], strict=True) if count > 0]
    left_out = tuple(
        LeftOut(device=share.device.device, reason=_why_left_out(share))
        for share, count in zip(shares[1:], counts[1:], strict=True)
        if count == 0
    )
    head = shares[0].device
    if not in_ring:
        return _alone(epoch, head, [], model, context, why="", left_out=left_out)

    # The head takes its share at the front, but for the one window that closes the ring.
    closing = max(b for b in model.boundaries if b < model.n_layers)
    ends = [counts[0] - (model.n_layers - closing)]
    for _, count in in_ring[:-1]:
        ends.append(ends[-1] + count)
    cuts = _snap([0, *ends, closing], model.boundaries)
    owners = [head.device, *(share.device.device for share, _ in in_ring), head.device]
    hops = tuple(
        Hop(device=owner, first=first, last=last)
        for owner, first, last in zip(owners, cuts, [*cuts[1:], model.n_layers], strict=True)
        if last > first
    )
    placed = {hop.device for hop in hops}
    left_out += tuple(
        LeftOut(device=share.device.device, reason="the model can be cut at too few places")
        for share, _ in in_ring
        if share.device.device not in placed
    )
    if placed == {head.device}:
        return _alone(epoch, head, [], model, context, why="", left_out=left_out)
    return _checked(epoch, [s.device for s in shares], hops, model, for_ring(context), left_out)


def _snap(cuts: list[int], allowed: tuple[int, ...]) -> list[int]:
    """The nearest allowed boundaries, ascending; a device may lose its window on coarse boundaries."""
    places = sorted({0, *allowed})
    snapped = [0]
    for cut in cuts[1:]:
        best = min(places, key=lambda place: (abs(place - cut), place))
        snapped.append(max(best, snapped[-1]))
    if snapped[1] == 0:  # the ring begins at the head
        snapped[1] = next(place for place in places if place > 0)
        snapped = [0, *(max(place, snapped[1]) for place in snapped[1:])]
    return snapped


def _alone(
    epoch: int,
    head: DeviceProfile,
    others: Sequence[DeviceProfile],
    model: ModelProfile,
    context: ContextOptions,
    *,
    why: str,
    left_out: tuple[LeftOut, ...] = (),
) -> Plan:
    left_out = left_out + tuple(LeftOut(device=device.device, reason=why) for device in others)
    hops = (Hop(device=head.device, first=0, last=model.n_layers),)
    return _checked(epoch, [head], hops, model, decided(context), left_out)


def _checked(
    epoch: int,
    devices: Sequence[DeviceProfile],
    hops: tuple[Hop, ...],
    model: ModelProfile,
    context: ContextOptions,
    left_out: tuple[LeftOut, ...],
) -> Plan:
    memory: dict[str, int] = {}
    tpot = prefill = 0.0
    for device in devices:
        windows = [(hop.first, hop.last) for hop in hops if hop.device == device.device]
        if not windows:
            continue
        need = share_bytes(model, context, windows)
        if need > device.memory_budget:
            raise PlanError(
                f"{device.name} would need {need / GIB:.2f} GiB for its share but may use "
                f"{device.memory_budget / GIB:.2f} GiB; add a device, allow more memory (--memory) "
                f"or ask for a shorter context (--ctx)"
            )
        memory[device.device] = need
        weights = sum(sum(model.layer_bytes[first:last]) for first, last in windows)
        ends = any(last == model.n_layers for _, last in windows)
        tpot += 1e3 * (weights + (model.output_bytes if ends else 0)) / device.bandwidth
        prefill = max(prefill, 1e3 * weights * 2 / device.flops)
    expected = Expectation(tpot_ms=tpot, ttft_ms_per_token=prefill, bytes_read_per_token=0, memory=memory)
    return Plan(
        epoch=epoch,
        model=model.model,
        n_layers=model.n_layers,
        hops=hops,
        context=context,
        left_out=left_out,
        expected=expected,
    )


def _why_left_out(share: _Share) -> str:
    if share.most == 0:
        return f"its memory ({share.device.memory_budget / GIB:.2f} GiB) does not hold one layer"
    return "it is so much slower than the others that one layer on it would hold up the ring"


def _too_small(shares: list[_Share], model: ModelProfile, what: str) -> str:
    budget = sum(share.device.memory_budget for share in shares)
    return (
        f"{what}: {model.total_bytes / GIB:.2f} GiB of weights, {budget / GIB:.2f} GiB of memory on "
        f"{len(shares)} devices; add a device, allow more memory (--memory), or a shorter context (--ctx)"
    )
