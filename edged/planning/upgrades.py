"""What would help most: the plan made again with one thing bought or another head, for every such thing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf

from edged.errors import PlanError
from edged.planning.cost import RingCost
from edged.planning.model_profile import ModelProfile
from edged.planning.profile import ClusterProfile, DeviceProfile, LinkProfile
from edged.planning.runnable import solve_runnable
from edged.planning.solve import Wishes
from edged.planning.uneven import alike

MORE_MEMORY = 8 * 2**30  # bytes: a common module
FAST_DISK = 3e9  # bytes per second: a common NVMe disk
CABLE_LATENCY = 0.0004  # seconds through gRPC, TLS and a gigabit switch
CABLE_BANDWIDTH = 117e6  # bytes per second: gigabit Ethernet's payload
LEAST_GAIN = 0.01  # of the whole, below which nothing is worth mentioning
HEAD_GAIN = 0.1  # the same of another head, which a user may have reasons against
MOST_IDEAS = 3  # looked at with every layer as it is
MOST_HEADS = 1  # the same of other heads
MOST_DEVICES = 16  # of a cluster; above, only those are looked at that hold the ring up most


@dataclass(frozen=True, slots=True)
class Upgrade:
    """Something to buy or to change, and what a token takes less with it."""

    device: str
    what: str  # "8 GB more in nuc"
    saves_ms: float


@dataclass(frozen=True, slots=True)
class _Idea:
    device: str
    what: str
    changed: ClusterProfile  # with it
    gain: float = LEAST_GAIN  # of the whole, that it must bring


def upgrades(
    ring: RingCost, cluster: ClusterProfile, model: ModelProfile, wishes: Wishes
) -> tuple[Upgrade, ...]:
    """The upgrades worth having, the best first. `ring`: what `wishes` give for `cluster` as it is."""
    ideas = list(_ideas(ring, cluster))
    if model.boundaries and wishes.solver == "overlap":
        heads = [] if wishes.any_head else list(_heads(ring, cluster))
        ideas = _promising(ideas, alike(model), wishes, MOST_IDEAS)
        ideas += _promising(heads, alike(model), wishes, MOST_HEADS)
    now = ring.goal(wishes.objective)
    found = []
    for idea in ideas:
        then = _goal(idea, model, wishes)
        if now - then > idea.gain * now:
            found.append(Upgrade(device=idea.device, what=idea.what, saves_ms=1e3 * (now - then)))
    return tuple(sorted(found, key=lambda upgrade: -upgrade.saves_ms))


def _promising(ideas: list[_Idea], model: ModelProfile, wishes: Wishes, most: int) -> list[_Idea]:
    """The best few as if all layers were the average one: that is many times quicker to solve."""
    rough = replace(wishes, roughly=True)
    goals = [(_goal(idea, model, rough), i) for i, idea in enumerate(ideas)]
    return [ideas[i] for goal, i in sorted(goals)[:most] if goal < inf]


def _goal(idea: _Idea, model: ModelProfile, wishes: Wishes) -> float:
    try:
        return solve_runnable(idea.changed, model, wishes).goal(wishes.objective)
    except PlanError:  # more of something never hurts, but a given assignment may not profit
        return inf


def _ideas(ring: RingCost, cluster: ClusterProfile) -> Iterator[_Idea]:
    streams = any(share.disk > 0 for share in ring.shares.values())
    for device in _worth_looking_at(ring, cluster):
        changes = {"memory_budget": device.memory_budget + MORE_MEMORY}
        more = device.model_copy(update=changes)
        yield _Idea(device.device, f"8 GB more in {device.name}", cluster.with_device(more))
        if device.disk_sequential < FAST_DISK / 2 and streams:
            faster = device.model_copy(update={"disk_sequential": FAST_DISK})
            yield _Idea(device.device, f"an NVMe disk in {device.name}", cluster.with_device(faster))
        if (wired := _wired(cluster, device)) is not None:
            yield _Idea(device.device, f"a cable to {device.name}", wired)


def _heads(ring: RingCost, cluster: ClusterProfile) -> Iterator[_Idea]:
    for device in _worth_looking_at(ring, cluster):
        if device.device != cluster.head:
            what = f"{device.name} as the head (--head {device.name})"
            yield _Idea(device.device, what, cluster.with_head(device.device), HEAD_GAIN)


def _worth_looking_at(ring: RingCost, cluster: ClusterProfile) -> list[DeviceProfile]:
    if len(cluster.devices) <= MOST_DEVICES:
        return list(cluster.devices)
    busiest = sorted(ring.shares, key=lambda device: -max(ring.shares[device].busy, ring.shares[device].disk))
    return [cluster.by_id[device] for device in busiest[: MOST_DEVICES // 2]]


def _wired(cluster: ClusterProfile, device: DeviceProfile) -> ClusterProfile | None:
    """With a cable from the device to where the others are; None where its links are as good already."""
    links = {(link.source, link.target): link for link in cluster.links}
    better = False
    for other in cluster.devices:
        if other.device == device.device:
            continue
        for ends in ((device.device, other.device), (other.device, device.device)):
            now = cluster.link(*ends)
            latency, bandwidth = min(now.latency, CABLE_LATENCY), max(now.bandwidth, CABLE_BANDWIDTH)
            better |= latency < now.latency or bandwidth > now.bandwidth
            links[ends] = LinkProfile(source=ends[0], target=ends[1], latency=latency, bandwidth=bandwidth)
    return cluster.with_links(tuple(links.values())) if better else None
