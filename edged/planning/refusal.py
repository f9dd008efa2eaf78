"""Why a wish is impossible: one line with the numbers."""

from __future__ import annotations

from dataclasses import replace
from math import inf

from edged.planning.best import can_share
from edged.planning.cost import Problem, share
from edged.planning.deal import closings
from edged.planning.plan import Hop

GIB = 2**30


def _small_head(problem: Problem) -> str | None:
    """Why the head cannot even hold what every head of a ring has, if it is so."""
    if not can_share(problem):
        return None
    least = _least_as_head(problem, problem.head)
    head = problem.devices[problem.head]
    has = head.profile.memory_budget
    if not has < least < inf:
        return None
    others = [name for name in problem.devices if name != problem.head]
    able = [name for name in others if _least_as_head(problem, name) <= _memory(problem, name)]
    what = "choose another head (--head NAME, or --head any)" if able else "no other device has it either"
    return (
        f"{head.name} is too small to be the head: the first layers, the last ones and the output side take "
        f"{least / GIB:.2f} GiB at least, it has {has / GIB:.2f} GiB; {what}"
    )


def _memory(problem: Problem, name: str) -> int:
    return problem.devices[name].profile.memory_budget


def _least_as_head(problem: Problem, name: str) -> float:
    """Bytes of RAM that a device needs at least as the head of a ring; inf where it cannot be at all."""
    costs, of = problem.devices[name], problem.of
    first, last = (0, of.places[1]), (of.places[-2], of.places[-1])
    unbounded = replace(costs, profile=costs.profile.model_copy(update={"memory_budget": 2**62}))
    n = first[1] - first[0]
    windows = [Hop(device=name, first=0, last=n)]
    if costs.disk > 0:
        windows.append(Hop(device=name, first=0, last=n, streamed=n, read_ahead=1))
    if costs.gpu is not None:
        windows.append(Hop(device=name, first=0, last=n, gpu_layers=n))
    shares = (
        share(unbounded, of, (one, how.hop(name, *last))) for one in windows for how in closings(costs, of)
    )
    return min((one.memory for one in shares if one.fits), default=inf)


def refusal(problem: Problem, solver: str, rounds: int | None = None) -> str:
    model, of = problem.model, problem.of
    profiles = [one.profile for one in problem.devices.values()]
    total = model.total_bytes
    disks = sum(profile.disk_free for profile in profiles)
    if solver == "single" or not model.boundaries or len(profiles) == 1:
        disks = max(profile.disk_free for profile in profiles)
    if total > disks:
        whole = "the free disks together" if len(profiles) > 1 else "the free disk"
        return f"the model has {total / GIB:.2f} GiB, {whole} {disks / GIB:.2f} GiB; free some space"
    if solver == "halda" and len(profiles) > model.n_layers:
        return (
            f"--solver {solver} begins with a layer on every device, and there are {len(profiles)} devices "
            f"for {model.n_layers} layers; leave some out, or take --solver overlap"
        )
    layer = max(model.layer_bytes) + of.cache.prefix[-1] / model.n_layers + of.overhead
    most = max(profile.memory_budget for profile in profiles)
    if layer > most:
        return (
            f"no device has memory for one layer: it takes {layer / GIB:.2f} GiB with its cache and buffers, "
            f"the most that a device has is {most / GIB:.2f} GiB"
        )
    if (small := _small_head(problem)) is not None:
        return small
    if rounds is not None and rounds > 1:
        at_least = rounds * min(2, len(profiles)) + 1  # of two devices, and the closing layer
        return (
            f"no ring that comes by each device {rounds} times fits: it takes {at_least} layers or more (the "
            f"model has {model.n_layers}) and {rounds * of.overhead / GIB:.2f} GiB of buffers on each "
            f"device; try fewer --rounds"
        )
    memory = sum(profile.memory_budget for profile in profiles)
    memory += sum(0 if one.gpu_shares else one.gpu_budget for one in problem.devices.values())
    needed = total + of.cache.prefix[-1]
    disk = (
        "" if any(one.disk > 0 for one in problem.devices.values()) else "; no device's disk speed is known"
    )
    what = "fits nowhere" if solver == "overlap" else f"does not fit as --solver {solver} shares it out"
    return (
        f"the model {what}: {needed / GIB:.2f} GiB with its cache, {memory / GIB:.2f} GiB of memory on "
        f"{len(profiles)} device{'s' if len(profiles) > 1 else ''}{disk}; add a device, allow more memory "
        f"(--memory) or a shorter context (--ctx)"
    )
