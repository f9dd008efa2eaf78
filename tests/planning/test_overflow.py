"""Plans for models that the cluster's memory does not hold."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.errors import PlanError
from edged.planning.balance import plan_balanced
from edged.planning.footprint import share_bytes
from edged.planning.overflow import plan_overflowing
from edged.planning.plan import ContextOptions, Plan
from edged.planning.profile import DeviceProfile
from tests.planning.test_balance import MIB, device, model

CONTEXT = ContextOptions(n_ctx=512, n_seq_max=1, n_ubatch=16, flash_attention="off")
LAYER = 60 * MIB


def plan(devices: list[DeviceProfile], context: ContextOptions = CONTEXT, n_layers: int = 32) -> Plan:
    return plan_overflowing(
        epoch=1, head="a", devices=devices, model=model(n_layers, layer=LAYER), context=context
    )


def need(p: Plan, name: str) -> int:
    hops = [p.hops[place] for place in p.hops_of(name)]
    windows = [(hop.first, hop.last) for hop in hops]
    return share_bytes(
        model(p.n_layers, layer=LAYER),
        p.context,
        windows,
        [hop.streamed for hop in hops],
        max(hop.read_ahead for hop in hops),
    )


def test_what_fits_is_not_streamed() -> None:
    devices = [device("a"), device("b")]
    m = model(32, layer=LAYER)
    fitting = plan_balanced(epoch=1, head="a", devices=devices, model=m, context=CONTEXT)
    assert plan(devices).hops == fitting.hops


def test_each_device_keeps_as_much_as_it_can_hold() -> None:
    devices = [device("a", memory=1000 * MIB), device("b", memory=800 * MIB)]
    with pytest.raises(PlanError):
        plan_balanced(epoch=1, head="a", devices=devices, model=model(32, layer=LAYER), context=CONTEXT)
    p = plan(devices)
    assert sum(hop.streamed for hop in p.hops) > 0
    for one in devices:
        room = one.memory_budget - need(p, one.device)
        assert 0 <= room < 2 * LAYER  # no room for one layer more, save by the granularity of windows
    assert p.expected is not None
    assert p.expected.bytes_read_per_token == sum(hop.streamed for hop in p.hops) * LAYER
    assert p.expected.memory == {one.device: need(p, one.device) for one in devices}


def test_one_device_streams_too() -> None:
    p = plan([device("a", memory=900 * MIB)])
    assert len(p.hops) == 1
    assert 0 < p.hops[0].streamed < 32


def test_a_cache_that_takes_the_layers_room_is_refused() -> None:
    with pytest.raises(PlanError, match="the cache would take"):
        plan([device("a", memory=900 * MIB)], CONTEXT.model_copy(update={"n_ctx": 8192, "n_seq_max": 8}))


def test_what_no_disk_could_help_is_refused_with_numbers() -> None:
    with pytest.raises(PlanError, match=r"would need .* GiB even if it read all its layers from disk"):
        plan([device("a", memory=160 * MIB)])


def test_a_full_disk_is_said() -> None:
    full = device("a", memory=900 * MIB).model_copy(update={"disk_free": 10 * MIB})
    with pytest.raises(PlanError, match=r"keep .* GiB of layers on its disk, which has 0.01 GiB free"):
        plan([full])


@settings(max_examples=60, deadline=None)
@given(
    n_layers=st.integers(2, 64),
    memories=st.lists(st.integers(100, 2000), min_size=1, max_size=4),
    speeds=st.lists(st.floats(0.1, 10), min_size=4, max_size=4),
)
def test_budgets_are_kept(n_layers: int, memories: list[int], speeds: list[float]) -> None:
    devices = [
        device(name, memory * MIB, speed)
        for name, memory, speed in zip("abcd", memories, speeds, strict=False)
    ]
    try:
        p = plan(devices, n_layers=n_layers)
    except PlanError:
        return
    for one in devices:
        if one.device in p.devices:
            assert need(p, one.device) <= one.memory_budget
