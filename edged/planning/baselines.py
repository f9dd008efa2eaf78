"""Assignments that other systems use, to compare with: even, by memory, by compute, one device alone."""

from __future__ import annotations

from collections.abc import Sequence

from edged.planning.cost import Problem, RingCost
from edged.planning.device_costs import DeviceCosts
from edged.planning.plan import Objective
from edged.planning.uneven import Windows, snapped, without_empty


def even(problem: Problem, objective: Objective) -> RingCost | None:
    """The same number of layers for every device."""
    return by_weight(problem, objective, dict.fromkeys(problem.devices, 1.0))


def by_memory(problem: Problem, objective: Objective) -> RingCost | None:
    """Layers in proportion to RAM and VRAM."""
    return by_weight(problem, objective, {name: memory(one) for name, one in problem.devices.items()})


def by_compute(problem: Problem, objective: Objective) -> RingCost | None:
    """Layers in proportion to the speed of the device's best processor."""
    return by_weight(problem, objective, {name: speed(one) for name, one in problem.devices.items()})


def memory(device: DeviceCosts) -> float:
    return device.profile.memory_budget + (0 if device.gpu_shares else device.gpu_budget)


def speed(device: DeviceCosts) -> float:
    """Models per second."""
    seconds = [device.cpu.decode.prefix[-1]]
    if device.gpu is not None:
        seconds.append(device.gpu.decode.prefix[-1])
    return 1.0 / min(seconds)


def alone(problem: Problem, objective: Objective) -> RingCost | None:
    """The head with the whole model."""
    return Windows(problem, objective).alone()


def by_weight(problem: Problem, objective: Objective, weights: dict[str, float]) -> RingCost | None:
    """Layers in proportion to `weights`, in one round; None where that does not fit."""
    others = [name for name in problem.devices if name != problem.head]
    order = [problem.head, *others]
    n, places = problem.model.n_layers, problem.of.places
    windows = Windows(problem, objective)
    if len(places) < 3 or not others:
        return windows.alone()
    closing = places[-2]
    cuts = _cuts([weights[name] for name in order], n)
    cuts[1] = max(cuts[1], places[1])  # the ring begins at the head, however slow or small it is
    inner = [min(max(cut, cuts[1]), closing) for cut in cuts[1:-1]]
    owners, at = without_empty([*order, problem.head], snapped([0, *inner, closing, n], places))
    return windows.ring(owners, at)


def _cuts(weights: Sequence[float], n: int) -> list[int]:
    """Ends of the shares, rounded so that no share is off by more than one layer."""
    total, so_far, cuts = sum(weights), 0.0, [0]
    for weight in weights:
        so_far += weight
        cuts.append(round(n * so_far / total))
    return cuts
