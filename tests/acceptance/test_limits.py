"""A small device on a slow link: it knows its limits, keeps to them, and the answer stays exact."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edged.rpc.messages import MemberStatus
from tests.acceptance.cluster import FLAGS, MODEL, Cluster, import_bundled, join
from tests.acceptance.reference import greedy_chats, whole_model
from tests.lab import Device, Home, LabUnavailableError
from tests.lab.memory import parse_size

LIMIT = "700M"


@pytest.fixture(scope="module")
def unequal(shared_home: Home) -> Iterator[Cluster]:
    """A head, and a worker with little memory, one core and 100 Mbit/s."""
    head = shared_home.device("head").start_daemon(*FLAGS, "--rounds", "1")  # a ring, whatever it is worth
    head.wait_started()
    import_bundled(head)
    try:
        pi = shared_home.device("pi", cores=(0,), memory=LIMIT, link="100mbit")
    except LabUnavailableError as missing:
        pytest.skip(str(missing))
    cluster = Cluster(shared_home, [head, join(head, pi)])
    head.place.edged("run", MODEL, "Hello", "--max-tokens", "1")
    cluster.wait_ring_of(2)
    yield cluster


def member(cluster: Cluster, name: str) -> MemberStatus:
    return next(member for member in cluster.head.status().members if member.name == name)


def test_the_plan_knows_the_memory_limit(unequal: Cluster) -> None:
    limit = parse_size(LIMIT)
    assert 0 < member(unequal, "pi").memory_budget <= limit
    assert member(unequal, "head").memory_budget > limit
    plan = unequal.head.status().plan
    assert plan is not None
    pi = unequal.workers[0].status().device
    assert plan.expected is None or plan.expected.memory[pi] <= limit


def test_the_device_keeps_within_its_limit_and_answers_exactly(unequal: Cluster) -> None:
    plan = unequal.head.status().plan
    assert plan is not None
    flags = ("--temperature", "0", "--max-tokens", "32")
    shown = unequal.head.place.edged("run", MODEL, "What is a mill?", *flags).stdout
    with whole_model(plan.context, threads=1) as llama:
        (expected,) = greedy_chats(llama, ["What is a mill?"], 32)
    assert shown == expected + "\n"
    place = unequal.workers[0].place
    assert isinstance(place, Device)
    assert place.memory is not None
    assert 0 < place.memory.peak <= place.memory.limit
    assert unequal.workers[0].process.running
