"""The plan of a running cluster: for whole requests, and changed only where that pays."""

from __future__ import annotations

from typing import Literal

import pytest

from edged.errors import PlanError
from edged.planning.model_profile import ModelProfile
from edged.planning.plan import ContextOptions, Objective
from edged.planning.profile import ClusterProfile, DeviceProfile, LinkProfile, ProcessorProfile, TypeSpeed
from edged.planning.running import Switching, plan_to_run, worth_switching
from edged.planning.solve import Wishes, make_plan

MIB = 2**20
OBJECTIVES: tuple[Objective, ...] = ("throughput", "latency")
WISH = ContextOptions(n_ctx=2048, n_seq_max=4, n_ubatch=128)
SOON = Switching(seconds=5.0, tokens=20_000)


def device(name: str, memory: int = 8192, speed: float = 1e9, disk: float = 0.0) -> DeviceProfile:
    return DeviceProfile(
        device=name,
        name=name,
        memory_budget=memory * MIB,
        disk_free=2**40,
        threads=1,
        bandwidth=speed,
        flops=10 * speed,
        disk_sequential=disk,
    )


def cluster(*devices: DeviceProfile, latency: float = 2e-4) -> ClusterProfile:
    ids = [one.device for one in devices]
    links = tuple(
        LinkProfile(source=a, target=b, latency=latency, bandwidth=1e8) for a in ids for b in ids if a != b
    )
    return ClusterProfile(head=ids[0], devices=devices, links=links)


def model(n_layers: int = 24, layer: int = 40) -> ModelProfile:
    return ModelProfile(
        model="m",
        n_layers=n_layers,
        n_embd=1024,
        n_vocab=1000,
        n_heads=8,
        boundaries=tuple(range(1, n_layers)),
        layer_bytes=(layer * MIB,) * n_layers,
        embedding_bytes=4 * MIB,
        output_bytes=4 * MIB,
        kv_bytes_per_token_layer=1024,
        n_ctx_train=8192,
    )


def test_many_requests_want_everybody_and_one_stream_the_quickest() -> None:
    far = cluster(device("a"), device("b"), device("c"), latency=0.2)
    assert set(plan_to_run(far, model(), WISH, "throughput", 8192, 1).devices) == {"a", "b", "c"}
    alone = plan_to_run(far, model(), WISH, "latency", 8192, 1)
    assert alone.devices == ("a",)
    assert {out.device for out in alone.left_out} == {"b", "c"}


def test_one_user_gets_help_with_the_prompt_where_hops_cost_little() -> None:
    near = cluster(device("a"), device("b"))
    plan = plan_to_run(near, model(), WISH, "latency", 8192, 1)
    assert set(plan.devices) == {"a", "b"}
    assert [hop.n_layers for hop in plan.hops] == [11, 12, 1]  # evenly: every device takes as long


def test_rounds_are_kept_to_where_there_is_a_ring() -> None:
    for objective in OBJECTIVES:
        for rounds in (1, 2):
            home = cluster(device("a"), device("b"))
            plan = plan_to_run(home, model(), WISH, objective, 8192, 1, rounds)
            assert (plan.rounds, len(plan.hops)) == (rounds, 2 * rounds + 1)
        assert len(plan_to_run(cluster(device("a")), model(), WISH, objective, 8192, 1, 2).hops) == 1
    with pytest.raises(PlanError, match="comes by each device 12 times"):
        plan_to_run(cluster(device("a"), device("b")), model(), WISH, "latency", 8192, 1, 12)


def test_a_shorter_context_comes_before_streaming_and_streaming_before_refusal() -> None:
    tight = cluster(device("a", memory=1150, disk=1e9))
    plan = plan_to_run(tight, model(), WISH, "throughput", 8192, 1)
    assert sum(hop.streamed for hop in plan.hops) == 0
    assert plan.context.n_seq_max < WISH.n_seq_max
    small = cluster(device("a", memory=700, disk=1e9))
    plan = plan_to_run(small, model(), WISH, "throughput", 8192, 1)
    assert sum(hop.streamed for hop in plan.hops) > 0
    assert "read from disk" in plan.note
    with pytest.raises(PlanError, match="GiB"):
        plan_to_run(cluster(device("a", memory=700)), model(), WISH, "throughput", 8192, 1)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_output_matrix_is_streamed_where_the_head_cannot_hold_it(objective: Objective) -> None:
    large = model().model_copy(update={"output_bytes": 300 * MIB, "can_stream_output": True})
    roomy = cluster(device("a", memory=600, disk=1e9), device("b", memory=500, disk=1e9))
    assert not plan_to_run(roomy, large, WISH, objective, 8192, 1).hops[-1].streams_output
    tight = cluster(device("a", memory=280, disk=1e9), device("b", memory=500, disk=1e9))
    plan = plan_to_run(tight, large, WISH, objective, 8192, 1)
    assert [hop.streams_output for hop in plan.hops] == [False] * (len(plan.hops) - 1) + [True]
    assert plan.expected is not None
    head = plan.expected.devices[0]
    layers = sum(hop.streamed for hop in plan.hops if hop.device == "a") * 40 * MIB
    assert head.bytes_read == layers + 300 * MIB
    assert head.disk_ms == pytest.approx(head.bytes_read / 1e6)
    assert head.memory_left >= 0
    assert not worth_switching(plan, plan, tight, large, SOON)
    resident = large.model_copy(update={"can_stream_output": False})
    with pytest.raises(PlanError, match="output side"):
        plan_to_run(tight, resident, WISH, objective, 8192, 1)
    with pytest.raises(PlanError, match="output side"):
        slow = cluster(device("a", memory=280), device("b", memory=500, disk=1e9))
        plan_to_run(slow, large, WISH, objective, 8192, 1)


def test_no_device_is_to_stream_beside_layers_on_its_gpu() -> None:
    def processor(kind: Literal["cpu", "gpu"], speed: float, memory: int = 0) -> ProcessorProfile:
        return ProcessorProfile(
            name=kind,
            kind=kind,
            speeds=(TypeSpeed(type="", decode=speed, prefill=speed),),
            memory_bandwidth=speed,
            memory_budget=memory * MIB,
        )

    processors = (processor("cpu", 1e9), processor("gpu", 1e10, 200))
    one = device("a", memory=300, disk=1e9).model_copy(update={"processors": processors})
    home = cluster(one, device("b", memory=300))
    both = make_plan(home, model(), Wishes(WISH.model_copy(update={"n_seq_max": 1})))
    assert any(hop.streamed and hop.gpu_layers for hop in both.hops)  # else nothing is asked of what follows
    for objective in OBJECTIVES:
        plan = plan_to_run(home, model(), WISH, objective, 8192, 1)
        assert any(hop.streamed for hop in plan.hops)
        assert not any(hop.streamed and hop.gpu_layers for hop in plan.hops)


def test_a_ring_is_given_up_only_for_a_gain_that_pays() -> None:
    two = cluster(device("a"), device("b"))
    running = plan_to_run(two, model(), WISH, "throughput", 8192, 1)
    three = cluster(device("a"), device("b"), device("c"))
    better = plan_to_run(three, model(), WISH, "throughput", 8192, 2)
    assert worth_switching(running, better, three, model(), SOON)
    assert not worth_switching(running, better, three, model(), Switching(seconds=1e6, tokens=20_000))
    assert not worth_switching(running, better, three, model(), Switching(seconds=5.0, tokens=10))
    nearly = cluster(device("a", speed=1.05e9), device("b"))
    again = plan_to_run(nearly, model(), WISH, "throughput", 8192, 2)
    assert not worth_switching(running, again, nearly, model(), Switching(seconds=0.0, tokens=10**9))


def test_a_ring_that_cannot_go_on_is_given_up() -> None:
    home = cluster(device("a"), device("b"))
    running = plan_to_run(home, model(), WISH, "throughput", 8192, 1)
    poorer = cluster(device("a"), device("b", memory=200))
    other = plan_to_run(poorer, model(), WISH, "throughput", 8192, 2)
    assert worth_switching(running, other, poorer, model(), SOON)
    alone = cluster(device("a"))
    other = plan_to_run(alone, model(), WISH, "throughput", 8192, 2)
    assert worth_switching(running, other, alone, model(), SOON)


def test_a_ring_that_is_short_of_a_little_memory_goes_on() -> None:
    home = cluster(device("a"), device("b"))
    running = plan_to_run(home, model(), WISH, "throughput", 8192, 1)
    assert running.expected is not None
    taken = running.expected.memory["b"] // MIB
    short = cluster(device("a"), device("b", memory=taken - 10))
    other = plan_to_run(short, model(), WISH, "throughput", 8192, 2)
    enough = cluster(device("a"), device("b", memory=taken + 10))
    assert worth_switching(running, other, short, model(), SOON)
    assert not worth_switching(running, other, short, model(), SOON, tolerant=enough)
