"""The plan of a running cluster: the ring that is best for whole requests, and when one is worth a switch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from edged.errors import PlanError
from edged.planning.balance import plan_balanced
from edged.planning.context import with_longest_context
from edged.planning.cost import Problem, RingCost, ring_cost
from edged.planning.model_profile import ModelProfile
from edged.planning.plan import ContextOptions, Objective, Plan
from edged.planning.profile import ClusterProfile
from edged.planning.runnable import solve_runnable
from edged.planning.solve import TYPICAL, Wishes, plan_of

ANSWER = 128  # generated tokens of a typical request; its prompt is the workload's
LEAST_GAIN = 0.1  # of the time a request takes: what is measured is not surer than this


def plan_to_run(
    cluster: ClusterProfile,
    model: ModelProfile,
    wish: ContextOptions,
    objective: Objective,
    n_ctx_train: int,
    epoch: int,
    rounds: int | None = None,
) -> Plan:
    """The plan for `wish`, or for the longest context that goes without streaming layers from disk.

    Where no context does, the plan streams, with one sequence of the length wished for (or a shorter one):
    then there is one user, whatever the objective.
    rounds: the ring comes by each device so often, where there are several; None for the best number.
    Raises PlanError, with the numbers, where there is no ring at all.
    """

    def planning(company: ClusterProfile, objective: Objective) -> Callable[[ContextOptions], Plan]:
        wishes = Wishes(wish, objective=objective, rounds=rounds)
        return lambda context: _best(company, model, replace(wishes, context=context), epoch)

    in_memory = without_disks(cluster)
    try:
        return with_longest_context(wish, n_ctx_train, planning(in_memory, objective))
    except PlanError as refusal:
        if in_memory == cluster:
            raise
        one = wish.model_copy(update={"n_seq_max": 1})
        try:
            plan = with_longest_context(one, n_ctx_train, planning(cluster, "latency"))
        except PlanError:
            raise refusal from None
    note = "; ".join(
        filter(None, [plan.note, "the memory does not hold the model: layers are read from disk"])
    )
    return plan.model_copy(update={"note": note})


def without_disks(cluster: ClusterProfile) -> ClusterProfile:
    """The same cluster, where nothing can be streamed."""
    devices = tuple(device.model_copy(update={"disk_sequential": 0.0}) for device in cluster.devices)
    return cluster.with_devices(devices)


def request_s(ring: RingCost, objective: Objective) -> float:
    """Seconds that a typical request takes: alone (latency), or one of many at once (throughput)."""
    answer = ANSWER * ring.goal(objective)
    if objective == "latency":
        return ring.first_token + answer
    return ring.problem.of.workload.prompt / ring.problem.of.chunk * ring.chunk_stage + answer


def _best(cluster: ClusterProfile, model: ModelProfile, wishes: Wishes, epoch: int) -> Plan:
    """The quickest for whole requests among the solver's ring, and one that is balanced for prompts.

    Also for one user: what hops add to every token, a prompt that several devices share may save.
    """
    rings = [solve_runnable(cluster, model, wishes)]
    if wishes.objective == "throughput":
        rings.append(solve_runnable(cluster, model, replace(wishes, objective="latency")))
    balanced = _balanced(cluster, model, wishes, rings[0].problem)
    if balanced is not None and (wishes.rounds is None or balanced.rounds == wishes.rounds):
        rings.append(balanced)
    return plan_of(min(rings, key=lambda ring: request_s(ring, wishes.objective)), wishes, epoch=epoch)


def _balanced(
    cluster: ClusterProfile, model: ModelProfile, wishes: Wishes, problem: Problem
) -> RingCost | None:
    try:
        plan = plan_balanced(
            epoch=1, head=cluster.head, devices=cluster.devices, model=model, context=wishes.context
        )
    except PlanError:
        return None
    ring = ring_cost(Problem(cluster, model, plan.context, problem.workload), plan.hops)
    return ring if ring.fits else None


@dataclass(frozen=True, slots=True)
class Switching:
    """What a switch costs: seconds in which nobody is answered, and tokens over which it must pay."""

    seconds: float  # that the last switch took
    tokens: int  # that are likely to be generated before things change again


def worth_switching(
    running: Plan,
    plan: Plan,
    cluster: ClusterProfile,
    model: ModelProfile,
    switching: Switching,
    tolerant: ClusterProfile | None = None,
) -> bool:
    """Whether `plan` should replace the plan that runs, both judged by the same profiles.

    It should if the running one does not fit any more, or if a request takes at least a tenth less time and
    what is saved on the tokens to come exceeds the time of the switch. tolerant: the same cluster with as
    much memory as the running one has to fit in, where that is more than a new plan may take.
    """
    if not set(running.devices) <= {device.device for device in cluster.devices}:
        return True
    old = ring_cost(Problem(cluster, model, running.context, TYPICAL), running.hops)
    new = ring_cost(Problem(cluster, model, plan.context, TYPICAL), plan.hops)
    room = ring_cost(Problem(tolerant or cluster, model, running.context, TYPICAL), running.hops)
    if not room.fits:
        return True
    before, after = request_s(old, plan.objective), request_s(new, plan.objective)
    if before - after < LEAST_GAIN * before:
        return False
    return (before - after) / ANSWER * switching.tokens > switching.seconds
