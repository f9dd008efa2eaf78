"""A plan for a model that does not fit into the cluster's memory: each device streams what does not fit.

The layers are shared out as if every device had the same multiple of its memory, the least with which there
is a plan at all; then each device keeps as many of its layers as its true memory holds. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from edged.errors import PlanError
from edged.planning.balance import GIB, plan_balanced
from edged.planning.context import SHORTEST
from edged.planning.footprint import kv_bytes_per_layer, share_bytes, streamed_bytes
from edged.planning.plan import ContextOptions, Expectation, Hop, Plan
from edged.planning.profile import DeviceProfile, ModelProfile
from edged.planning.streamed import READ_AHEAD

MOST = 64.0  # times the memory; with less resident nobody would wait for an answer
CLOSE_ENOUGH = 1.02  # between two multiples
CACHE_SHARE = 0.125  # of the memory: what the cache takes, layers lose


def plan_overflowing(
    *,
    epoch: int,
    head: str,
    devices: Sequence[DeviceProfile],
    model: ModelProfile,
    context: ContextOptions,
) -> Plan:
    """As `plan_balanced`, with streamed layers. Raises PlanError, also for a cache that takes too much."""
    memory = sum(device.memory_budget for device in devices)
    cache = model.n_layers * kv_bytes_per_layer(model, context)
    if cache > CACHE_SHARE * memory and (context.n_seq_max > 1 or context.n_ctx >= 2 * SHORTEST):
        raise PlanError(
            f"the cache would take {cache / GIB:.2f} GiB of the cluster's {memory / GIB:.2f} GiB of memory"
        )

    def with_memory(multiple: float) -> Plan:
        stretched = [
            device.model_copy(update={"memory_budget": int(device.memory_budget * multiple)})
            for device in devices
        ]
        return plan_balanced(epoch=epoch, head=head, devices=stretched, model=model, context=context)

    low, high = 1.0, MOST
    plan = with_memory(high)
    while high / low > CLOSE_ENOUGH:
        middle = (low * high) ** 0.5
        try:
            plan, high = with_memory(middle), middle
        except PlanError:
            low = middle
    return _with_streamed(plan, {device.device: device for device in devices}, model)


def _with_streamed(plan: Plan, devices: dict[str, DeviceProfile], model: ModelProfile) -> Plan:
    hops = list(plan.hops)
    memory: dict[str, int] = {}
    read = 0
    for name in plan.devices:
        places = plan.hops_of(name)
        mine, memory[name] = _fit(devices[name], [hops[place] for place in places], model, plan.context)
        for place, hop in zip(places, mine, strict=True):
            hops[place] = hop
            read += streamed_bytes(model, hop.first, hop.last, hop.streamed)
    assert plan.expected is not None
    expected = Expectation(
        tpot_ms=plan.expected.tpot_ms,
        ttft_ms_per_token=plan.expected.ttft_ms_per_token,
        bytes_read_per_token=read,
        memory=memory,
    )
    return plan.model_copy(update={"hops": tuple(hops), "expected": expected})


def _fit(
    device: DeviceProfile, hops: list[Hop], model: ModelProfile, context: ContextOptions
) -> tuple[list[Hop], int]:
    """The device's hops with as few layers streamed as its memory allows, and what they take of it."""
    windows = [(hop.first, hop.last) for hop in hops]
    layers = sum(last - first for first, last in windows)
    for count in range(layers + 1):
        streamed = _share_out(count, windows)
        need = share_bytes(model, context, windows, streamed, READ_AHEAD)
        if need <= device.memory_budget:
            break
    else:
        raise PlanError(
            f"{device.name} would need {need / GIB:.2f} GiB even if it read all its layers from disk "
            f"for every token, but may use {device.memory_budget / GIB:.2f} GiB; add a device, or allow more "
            f"memory (--memory)"
        )
    images = sum(
        streamed_bytes(model, first, last, count)
        for (first, last), count in zip(windows, streamed, strict=True)
    )
    if images > device.disk_free:
        raise PlanError(
            f"{device.name} would keep {images / GIB:.2f} GiB of layers on its disk, which has "
            f"{device.disk_free / GIB:.2f} GiB free; make room, or allow more memory (--memory)"
        )
    return [
        hop.model_copy(update={"streamed": count, "read_ahead": READ_AHEAD if count else 0})
        for hop, count in zip(hops, streamed, strict=True)
    ], need


def _share_out(count: int, windows: Sequence[tuple[int, int]]) -> list[int]:
    """`count` layers over the windows, in proportion to their lengths."""
    total = sum(last - first for first, last in windows)
    shares = []
    behind = 0
    for first, last in windows:
        ahead = behind + (last - first)
        shares.append(count * ahead // total - count * behind // total)
        behind = ahead
    return shares
