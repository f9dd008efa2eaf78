"""Deciding: device, link and model profiles and wishes in, a plan out. Pure: no clock, no socket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

from edged.errors import PlanError
from edged.planning import baselines, best, halda
from edged.planning.context import decided, for_ring
from edged.planning.cost import Problem, RingCost
from edged.planning.device_costs import Workload
from edged.planning.left_out import left_out
from edged.planning.model_profile import ModelProfile
from edged.planning.plan import ContextOptions, Objective, Plan
from edged.planning.profile import ClusterProfile
from edged.planning.refusal import refusal
from edged.planning.uneven import Windows

SolverName = Literal["overlap", "halda", "even", "memory", "compute", "single"]
SOLVERS: tuple[SolverName, ...] = get_args(SolverName)

Find = Callable[[Problem, Objective], RingCost | None]
_OTHERS: dict[SolverName, Find] = {
    "halda": halda.best_ring,
    "even": baselines.even,
    "memory": baselines.by_memory,
    "compute": baselines.by_compute,
}


TYPICAL = Workload()


@dataclass(frozen=True)
class Wishes:
    """What the user wants of a plan."""

    context: ContextOptions
    solver: SolverName = "overlap"
    objective: Objective = "latency"
    workload: Workload = TYPICAL
    any_head: bool = False  # the head is chosen too; else it is the cluster's
    keeps_head: bool = False  # also of the solver `single`, which otherwise takes the best device
    roughly: bool = False  # a good ring will do, if it takes a fraction of the time
    mixes: bool = True  # devices may stream layers while they have others on their GPUs
    rounds: int | None = None  # how often the ring comes by each device; None: the solver chooses


def solve(cluster: ClusterProfile, model: ModelProfile, wishes: Wishes) -> RingCost:
    """The ring that `wishes.solver` finds. Raises PlanError, with the numbers, where there is none."""
    if wishes.rounds is not None and wishes.solver != "overlap":
        raise PlanError(f"the solver {wishes.solver} has its own rounds; leave out --rounds, or the solver")
    found = _found(cluster, model, wishes)
    disks = any(device.disk_sequential > 0 for device in cluster.devices)
    whole = wishes.solver == "overlap"  # it decides by itself whether the output matrix is streamed
    if model.can_stream_output and disks and not whole and all(_head_streams(ring) for ring in found):
        model = model.streaming_output()
        found += _found(cluster, model, wishes)
    if not found:
        problem = Problem(cluster, model, for_ring(wishes.context), wishes.workload, wishes.mixes)
        raise PlanError(refusal(problem, wishes.solver, wishes.rounds))
    return min(found, key=lambda cost: cost.goal(wishes.objective))


def _found(cluster: ClusterProfile, model: ModelProfile, wishes: Wishes) -> list[RingCost]:
    headed = [_with_head(one, model, wishes) for one in _headed(cluster, model, wishes)]
    return [cost for cost in headed if cost is not None]


def _head_streams(ring: RingCost) -> bool:
    return ring.shares[ring.hops[0].device].disk > 0


def make_plan(cluster: ClusterProfile, model: ModelProfile, wishes: Wishes, *, epoch: int = 1) -> Plan:
    """The plan that `wishes.solver` finds, with what to expect of it and what became of every device."""
    return plan_of(solve(cluster, model, wishes), wishes, epoch=epoch)


def plan_of(ring: RingCost, wishes: Wishes, *, epoch: int = 1) -> Plan:
    problem = ring.problem
    *others, last = ring.hops
    if problem.model.streams_output and last.gpu_layers == 0:
        last = last.model_copy(update={"streams_output": True})
    return Plan(
        epoch=epoch,
        model=problem.model.model,
        n_layers=problem.model.n_layers,
        hops=(*others, last),
        context=problem.context,
        left_out=left_out(ring, wishes.objective),
        expected=ring.expectation(),
        rounds=max(1, ring.rounds),
        solver=wishes.solver,
        objective=wishes.objective,
    )


def _headed(cluster: ClusterProfile, model: ModelProfile, wishes: Wishes) -> Iterator[ClusterProfile]:
    if wishes.solver == "single":
        yield cluster if wishes.keeps_head else _best_alone(cluster, model, wishes)
        return
    if not wishes.any_head:
        yield cluster
        return
    for device in cluster.devices:
        yield cluster.with_head(device.device)


def _best_alone(cluster: ClusterProfile, model: ModelProfile, wishes: Wishes) -> ClusterProfile:
    """With the device as head that is best alone; looked at one by one, so that many take no time squared."""
    goals = {}
    for device in cluster.devices:
        only = ClusterProfile(name=cluster.name, head=device.device, devices=(device,), links=())
        if (ring := _with_head(only, model, wishes)) is not None:
            goals[device.device] = ring.goal(wishes.objective)
    return cluster.with_head(min(goals, key=goals.__getitem__)) if goals else cluster


def _with_head(cluster: ClusterProfile, model: ModelProfile, wishes: Wishes) -> RingCost | None:
    """A ring keeps its context in other chunks than a device alone."""
    alone = Problem(cluster, model, decided(wishes.context), wishes.workload, wishes.mixes)
    in_ring = replace(alone, context=for_ring(wishes.context))
    found: list[RingCost | None] = []
    may_be_alone = wishes.rounds is None or not best.can_share(alone)
    if wishes.solver in ("overlap", "single") and may_be_alone:
        found.append(Windows(alone, wishes.objective).alone())
        found.append(Windows(in_ring, wishes.objective).alone())  # smaller chunks take less memory
    if wishes.solver == "overlap":
        found.append(best.best_ring(in_ring, wishes.objective, wishes.rounds, wishes.roughly))
    elif wishes.solver != "single":
        found.append(_OTHERS[wishes.solver](in_ring, wishes.objective))
    return min(
        (cost for cost in found if cost is not None),
        key=lambda cost: cost.goal(wishes.objective),
        default=None,
    )
