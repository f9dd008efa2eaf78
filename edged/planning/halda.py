"""Halda, the assignment of prima.cpp (arXiv 2504.08791, section 3.3 and its code), with HiGHS: the baseline.

For k rounds with L = k W layers, over integers w_m (window) and n_m <= w_m (of them on the GPU):
    minimise k * sum(a_m w_m + b_m n_m + x_m) + kappa.
a_m: seconds of a CPU layer, its keys and values, and where memory is too small its bytes over the disk's
speed; b_m: what changes when a layer moves to the GPU; x_m: communication; kappa: the output side, and what
memory saves of the reading. A device is in one of four sets, which say whether it reads from disk, and
whether it holds at least or at most what fits: M1 macOS without Metal, M2 macOS with Metal, M3 Linux and
Android, all with too little memory; M4 enough memory, or a disk below 0.1 GB/s. The sets are assumed, the
programme is solved, the sets are computed again, until nothing changes.

Departures: a ring of edged ends at its head, so the head gets the last layers; and each device then holds its
windows as edged does, some layers for good, others streamed. Layers count as alike, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import highspy

from edged.planning.cost import Problem, RingCost
from edged.planning.plan import Objective
from edged.planning.uneven import Windows, snapped, without_empty

SLOWEST_DISK = 0.1e9  # bytes per second; below it nothing may be read again for every token
MOST_ITERATIONS = 20  # of the sets; they settle in two or three


class Set(Enum):
    M1 = "macOS without Metal, too little memory"
    M2 = "macOS with Metal, too little memory"
    M3 = "Linux or Android, too little memory"
    M4 = "enough memory, or too slow a disk"


@dataclass(frozen=True, slots=True)
class _Device:
    """A device in the programme's terms; seconds per layer, bytes."""

    name: str
    cpu: float
    gpu: float | None
    way: float  # seconds of communication per round
    layer: float  # bytes of a layer
    kept: float  # bytes of a layer with its cache
    memory: float
    gpu_memory: float
    disk: float
    mac: bool
    constant: float  # seconds that do not depend on the layers
    forced: bool = False  # into M4

    def fits(self, layers: float, on_gpu: float) -> bool:
        return (layers if self.mac else layers - on_gpu) * self.kept <= self.memory


@dataclass(frozen=True, slots=True)
class Assignment:
    """Windows by device, in ring order, the head first."""

    rounds: int
    devices: tuple[str, ...]
    windows: tuple[int, ...]
    on_gpu: tuple[int, ...]
    seconds: float  # Halda's own expectation


def best_ring(problem: Problem, objective: Objective) -> RingCost | None:
    """Halda's assignment as a ring of edged; None where the programme has no solution that fits."""
    found = sorted(assignments(problem), key=lambda one: one.seconds)
    for assignment in found:  # by its own estimate, the first that the true figures admit
        ring = _ring(problem, assignment, objective)
        if ring is not None:
            return ring
    return None


def assignments(problem: Problem) -> list[Assignment]:
    """The best assignment for every k that divides the number of layers."""
    names = [problem.head, *(name for name in problem.devices if name != problem.head)]
    n = problem.model.n_layers
    found = []
    for rounds in (k for k in range(1, n + 1) if n % k == 0):
        assignment = _solve_dropping(problem, names, rounds)
        if assignment is not None:
            found.append(assignment)
    return found


def _solve_dropping(problem: Problem, names: Sequence[str], rounds: int) -> Assignment | None:
    """A device left with a single CPU layer is dropped, and the whole is solved again."""
    names = list(names)
    while names and problem.model.n_layers // rounds >= len(names):
        assignment = _settled(problem, names, rounds)
        if assignment is None:
            return None
        weak = [
            name
            for name, window, gpu in zip(names, assignment.windows, assignment.on_gpu, strict=True)
            if name != problem.head and gpu == 0 and window == 1
        ]
        if not weak:
            return assignment
        names.remove(min(weak, key=lambda name: -problem.devices[name].cpu.decode.prefix[-1]))
    return None


def _settled(problem: Problem, names: Sequence[str], rounds: int) -> Assignment | None:
    """Sets assumed, solved and computed again until they stay."""
    devices = [_device(problem, name, names) for name in names]
    n = problem.model.n_layers
    room = [device.memory + (0.0 if device.mac else device.gpu_memory) for device in devices]
    first = [n * own / max(sum(room), 1.0) for own in room]  # in proportion to memory
    sets = [
        _set_of(device, layers, min(layers, _most_on_gpu(device, 1)))
        for device, layers in zip(devices, first, strict=True)
    ]
    seen: set[tuple[Set, ...]] = set()
    assignment: Assignment | None = None
    for _ in range(MOST_ITERATIONS):
        solved = _programme(devices, sets, rounds, n // rounds)
        if solved is None:
            break
        assignment = solved
        after = [
            _set_of(device, rounds * window, rounds * gpu)
            for device, window, gpu in zip(devices, solved.windows, solved.on_gpu, strict=True)
        ]
        if after == sets:
            forced = _force_one(devices, solved, after, rounds)
            if forced is None:
                return assignment
            devices = forced
            after = [Set.M4 if device.forced else one for device, one in zip(devices, after, strict=True)]
        elif tuple(after) in seen:
            return assignment  # they go round in a circle
        seen.add(tuple(after))
        sets = after
    return assignment


def _force_one(
    devices: list[_Device], solved: Assignment, sets: Sequence[Set], rounds: int
) -> list[_Device] | None:
    """Where VRAM stays free while devices are overloaded, the one with the slowest disk goes to M4."""
    free = any(
        device.gpu is not None and rounds * (gpu + 1) * device.kept <= device.gpu_memory
        for device, gpu in zip(devices, solved.on_gpu, strict=True)
    )
    overloaded = [i for i, one in enumerate(sets) if one is not Set.M4]
    if not free or not overloaded:
        return None
    slowest = min(overloaded, key=lambda i: devices[i].disk)
    return [replace(device, forced=device.forced or i == slowest) for i, device in enumerate(devices)]


def _device(problem: Problem, name: str, names: Sequence[str]) -> _Device:
    costs, of = problem.devices[name], problem.of
    n = problem.model.n_layers
    is_head = name == problem.head
    successor = names[(list(names).index(name) + 1) % len(names)]
    fixed = of.overhead + (of.last_overhead + problem.model.output_memory if is_head else 0)
    gpu = costs.gpu
    return _Device(
        name=name,
        cpu=costs.cpu.decode.prefix[-1] / n,
        gpu=None if gpu is None else gpu.decode.prefix[-1] / n,
        way=problem.hop_s(name, successor) if successor != name else 0.0,
        layer=of.weights.prefix[-1] / n,
        kept=(of.weights.prefix[-1] + of.cache.prefix[-1]) / n,
        memory=max(0.0, costs.profile.memory_budget - fixed),
        gpu_memory=max(0.0, costs.gpu_budget - of.overhead),
        disk=costs.disk,
        mac=costs.profile.os == "macos",
        constant=costs.cpu.output if is_head else 0.0,
    )


def _most_on_gpu(device: _Device, rounds: int) -> int:
    return int(device.gpu_memory // device.kept) // rounds if device.gpu is not None else 0


def _set_of(device: _Device, layers: float, on_gpu: float) -> Set:
    if device.forced or device.disk < SLOWEST_DISK or device.fits(layers, on_gpu):
        return Set.M4
    if device.mac:
        return Set.M1 if device.gpu is None else Set.M2
    return Set.M3


class _QuietHighs(highspy.Highs):
    """HiGHS greets on standard output when it enables its callbacks, before anybody could tell it not to."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def enableCallbacks(self) -> None:  # noqa: N802 - HiGHS chose the name
        self.setOptionValue("output_flag", False)
        super().enableCallbacks()  # type: ignore[no-untyped-call]


def _programme(devices: Sequence[_Device], sets: Sequence[Set], rounds: int, total: int) -> Assignment | None:
    """The integer programme for these sets, by HiGHS; None where it has no solution."""
    highs = _QuietHighs()
    highs.setOptionValue("threads", 1)
    integer = highspy.HighsVarType.kInteger
    windows = [highs.addVariable(lb=1, ub=total, type=integer) for _ in devices]
    on_gpu = [highs.addVariable(lb=0, ub=_most_on_gpu(one, rounds), type=integer) for one in devices]
    cost = 0.0
    constant = 0.0
    for device, kind, window, gpu in zip(devices, sets, windows, on_gpu, strict=True):
        read = 0.0 if kind is Set.M4 else device.layer / device.disk
        cost = cost + rounds * (device.cpu + read) * window
        if device.gpu is not None:
            saved = device.gpu - device.cpu - (read if kind is Set.M3 else 0.0)
            cost = cost + rounds * saved * gpu
        constant += rounds * device.way + device.constant
        if kind is Set.M3:
            constant -= device.memory / device.disk
        highs.addConstr(gpu <= window)
        held = rounds * device.kept * (window if device.mac else window - gpu)
        if kind is Set.M4:
            highs.addConstr(held <= device.memory)
        else:
            highs.addConstr(held >= device.memory)
    highs.addConstr(sum(windows[1:], windows[0]) == total)
    highs.minimize(cost)
    if highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        return None
    values = highs.getSolution().col_value
    return Assignment(
        rounds=rounds,
        devices=tuple(device.name for device in devices),
        windows=tuple(round(values[variable.index]) for variable in windows),
        on_gpu=tuple(round(values[variable.index]) for variable in on_gpu),
        seconds=highs.getObjectiveValue() + constant,
    )


def _ring(problem: Problem, assignment: Assignment, objective: Objective) -> RingCost | None:
    windows = Windows(problem, objective)
    n, places = problem.model.n_layers, problem.of.places
    owners, cuts = [], [0]
    for _ in range(assignment.rounds):
        for device, size in zip(assignment.devices, assignment.windows, strict=True):
            owners.append(device)
            cuts.append(cuts[-1] + size)
    if len(assignment.devices) > 1:  # the head closes the ring
        closing = places[-2]
        cuts = [*(min(cut, closing) for cut in cuts[:-1]), closing, n]
        owners.append(assignment.devices[0])
    owners, cuts = without_empty(owners, snapped(cuts, places))
    if owners[0] != problem.head or owners[-1] != problem.head:
        return None
    return windows.ring(owners, cuts)
