"""What the coordinator asks of planning, where the ring that runs is kept and where it is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edged.cluster.ring_planner import NO_GAIN, RingPlanner
from edged.planning.plan import ContextOptions, Objective
from edged.planning.profile import LinkProfile
from edged.store.manifest import Manifest
from tests.cluster.household import manifest, profile

OTHERS = {"a": profile("a")}
LINKS = (LinkProfile(source="h", target="a", latency=1e-4, bandwidth=1e9),)


def planner(
    objective: Objective,
    rounds: int | None = None,
    links: Callable[[], tuple[LinkProfile, ...]] = lambda: LINKS,
) -> RingPlanner:
    def wish(_: Manifest) -> ContextOptions:
        return ContextOptions(n_ctx=512, n_seq_max=1, n_ubatch=64)

    return RingPlanner(lambda: profile("h"), links, wish, objective, rounds)


def test_a_ring_is_kept_with_the_reason_why_a_newcomer_is_not_in_it() -> None:
    latency, throughput = planner("latency"), planner("throughput")
    alone = latency.plan(manifest(), {}, 1)
    kept = latency.kept(alone, manifest(), OTHERS, switch_s=1.0)
    assert kept is not None and kept.hops == alone.hops
    assert [out.device for out in kept.left_out] == ["a"] and "faster without it" in kept.left_out[0].reason
    alone = throughput.plan(manifest(), {}, 1)
    assert throughput.kept(alone, manifest(), OTHERS, switch_s=1.0) is None
    kept = throughput.kept(alone, manifest(), OTHERS, switch_s=1e9)
    assert kept is not None and [out.reason for out in kept.left_out] == [NO_GAIN]


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_with_rounds_given_a_device_is_alone_only_until_another_comes(objective: Objective) -> None:
    two = planner(objective, rounds=2)
    alone = two.plan(manifest(), {}, 1)
    assert len(alone.hops) == 1
    assert two.kept(alone, manifest(), OTHERS, switch_s=1e9) is None
    ring = two.plan(manifest(), OTHERS, 2)
    assert (ring.rounds, len(ring.hops)) == (2, 5)
    kept = two.kept(ring, manifest(), OTHERS, switch_s=1.0)
    assert kept is not None and kept.left_out == ()


def test_what_is_expected_follows_what_is_measured() -> None:
    known: list[LinkProfile] = []
    home = planner("throughput", links=lambda: tuple(known))
    ring = home.plan(manifest(), OTHERS, 1)
    known += LINKS  # quicker than what is assumed of a link that nobody has measured
    kept = home.kept(ring, manifest(), OTHERS, switch_s=1e9)
    assert kept is not None and kept.hops == ring.hops and len(ring.hops) == 3
    assert kept.expected is not None and ring.expected is not None
    hops = [sum(one.hop_ms for one in plan.expected.devices) for plan in (kept, ring) if plan.expected]
    assert hops[0] < hops[1] and kept.expected.tpot_ms < ring.expected.tpot_ms
