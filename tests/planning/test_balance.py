from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.errors import PlanError
from edged.planning.balance import plan_balanced
from edged.planning.context import with_longest_context
from edged.planning.footprint import share_bytes
from edged.planning.plan import ContextOptions, Hop, Plan
from edged.planning.profile import DeviceProfile, ModelProfile

MIB = 2**20
CONTEXT = ContextOptions(n_ctx=2048, n_seq_max=2, n_ubatch=64)


def device(name: str, memory: int = 4096 * MIB, speed: float = 1.0) -> DeviceProfile:
    return DeviceProfile(
        device=name,
        name=name,
        memory_budget=memory,
        disk_free=2**40,
        threads=4,
        bandwidth=speed * 1e10,
        flops=speed * 1e11,
    )


def model(n_layers: int, layer: int = 20 * MIB, boundaries: tuple[int, ...] | None = None) -> ModelProfile:
    return ModelProfile(
        model="m" * 64,
        n_layers=n_layers,
        n_embd=1024,
        n_vocab=32000,
        n_heads=16,
        boundaries=tuple(range(1, n_layers)) if boundaries is None else boundaries,
        layer_bytes=(layer,) * n_layers,
        embedding_bytes=64 * MIB,
        output_bytes=64 * MIB,
        kv_bytes_per_token_layer=4096,
        n_ctx_train=8192,
    )


def plan(devices: list[DeviceProfile], m: ModelProfile, context: ContextOptions = CONTEXT) -> Plan:
    return plan_balanced(epoch=1, head="a", devices=devices, model=m, context=context)


def layers_of(p: Plan) -> dict[str, int]:
    return {d: sum(p.hops[i].n_layers for i in p.hops_of(d)) for d in p.devices}


def test_equal_devices_share_equally() -> None:
    p = plan([device("a"), device("b"), device("c")], model(30))
    assert layers_of(p) == {"a": 10, "b": 10, "c": 10}
    assert p.hops[-1] == Hop(device="a", first=29, last=30)


def test_noise_of_measurement_does_not_unbalance() -> None:
    p = plan([device("a", speed=0.9), device("b", speed=1.05), device("c", speed=1.0)], model(30))
    assert layers_of(p) == {"a": 10, "b": 10, "c": 10}


def test_layers_follow_speed() -> None:
    p = plan([device("a", speed=1), device("b", speed=3)], model(40))
    assert layers_of(p) == {"a": 10, "b": 30}


def test_memory_caps_a_fast_device() -> None:
    small = share_bytes(model(30), CONTEXT, [(0, 5)])
    p = plan([device("a"), device("b", memory=small, speed=10)], model(30))
    assert layers_of(p)["b"] <= 5


def test_a_hopelessly_slow_device_is_left_out_with_a_reason() -> None:
    p = plan([device("a"), device("b", speed=1e-4)], model(12))
    assert p.devices == ("a",)
    assert [out.device for out in p.left_out] == ["b"]
    assert "slower" in p.left_out[0].reason


def test_model_without_boundaries_runs_whole_on_the_head() -> None:
    p = plan([device("a"), device("b")], model(12, boundaries=()))
    assert p.hops == (Hop(device="a", first=0, last=12),)
    assert "whole" in p.left_out[0].reason


def test_too_little_memory_names_the_numbers() -> None:
    with pytest.raises(PlanError, match=r"GiB of weights, .* GiB of memory on 2 devices"):
        plan([device("a", memory=300 * MIB), device("b", memory=100 * MIB)], model(60))


def test_context_shrinks_until_it_fits() -> None:
    wish = ContextOptions(n_ctx=8192, n_seq_max=8, n_ubatch=64)
    devices = [device("a", memory=700 * MIB)]
    with pytest.raises(PlanError):
        plan(devices, model(12), wish)
    p = with_longest_context(wish, 8192, lambda context: plan(devices, model(12), context))
    assert p.context.n_seq_max == 1
    assert p.context.n_ctx < wish.n_ctx
    given = f"1 sequence of {p.context.n_ctx} tokens"
    assert p.note == f"memory has room for {given} instead of 8 sequences of 8192 tokens"


def test_context_is_no_longer_than_the_model_was_trained_on() -> None:
    wish = ContextOptions(n_ctx=1_000_000, n_seq_max=2, n_ubatch=64)
    p = with_longest_context(wish, 2048, lambda context: plan([device("a")], model(12), context))
    assert (p.context.n_seq_max, p.context.n_ctx) == (2, 2048)
    assert p.note == "the model was trained on 2048 tokens: a request gets these, not 1000000"
    whole = with_longest_context(p.context, 2048, lambda context: plan([device("a")], model(12), context))
    assert whole.note == ""


def test_coverage_is_checked_where_a_plan_is_made() -> None:
    good = plan([device("a"), device("b")], model(12))
    for hops in (
        good.hops[1:],
        good.hops[:-1],
        (*good.hops[:1], *good.hops[2:]),
        (*good.hops, good.hops[-1]),
        tuple(hop.model_copy(update={"device": "b"}) for hop in good.hops[:-1]) + good.hops[-1:],
    ):
        with pytest.raises(ValueError, match=r"layer|ring"):
            Plan(epoch=1, model="m", n_layers=12, hops=hops, context=CONTEXT)


@settings(max_examples=200, deadline=None)
@given(
    n_layers=st.integers(1, 80),
    memories=st.lists(st.integers(10, 4000), min_size=1, max_size=6),
    speeds=st.lists(st.floats(0.01, 100), min_size=6, max_size=6),
    boundaries=st.sets(st.integers(1, 79)),
)
def test_every_plan_covers_once_and_keeps_budgets(
    n_layers: int, memories: list[int], speeds: list[float], boundaries: set[int]
) -> None:
    m = model(n_layers, boundaries=tuple(sorted(b for b in boundaries if b < n_layers)))
    names = "abcdef"
    devices = [
        device(name, memory * MIB, speed)
        for name, memory, speed in zip(names, memories, speeds, strict=False)
    ]
    try:
        p = plan(devices, m)
    except PlanError:
        return
    assert p.head == "a"
    covered = [layer for hop in p.hops for layer in range(hop.first, hop.last)]
    assert covered == list(range(n_layers))
    assert all(hop.first == 0 or hop.first in m.boundaries for hop in p.hops)
    for d in devices:
        windows = [(p.hops[i].first, p.hops[i].last) for i in p.hops_of(d.device)]
        assert share_bytes(m, p.context, windows) <= d.memory_budget or not windows
    assert set(p.devices) | {out.device for out in p.left_out} == {d.device for d in devices}
