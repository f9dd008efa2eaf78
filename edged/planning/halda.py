"""Halda, the assignment of prima.cpp (arXiv 2504.08791, section 3.3 and its code), with HiGHS: the baseline.

For k rounds with L = k W layers, over integers w_m (window) and n_m <= w_m (of them on the GPU):
    minimise k * sum(a_m w_m + b_m n_m + x_m) + kappa.
a_m: seconds of a CPU layer, and where memory is too small its bytes over the disk's speed; b_m: what changes
when a layer moves to the GPU; x_m: communication; kappa: the output side, and what memory saves of the
reading. A device is in one of four sets, which say whether it reads from disk, and whether it holds at least
or at most what fits: M1 macOS without Metal, M2 macOS with Metal, M3 Linux and Android, all with too little
memory; M4 enough memory, or a disk below 0.1 GB/s.

The sets are assumed, first for layers in proportion to RAM, with all of a GPU's device on its GPU. The
programme is solved for every k that divides L, the best k is taken, and the sets are computed again from its
windows, until nothing changes. Where VRAM stays free while layers run on CPUs or are read from disk, the
device with the slowest disk is forced into M4. Devices left with windows of one layer are dropped, all at
once and whatever runs the layer, and the whole is solved again.

Departures: a ring of edged ends at its head, so the head gets the last layers; and each device then holds its
windows as edged does, some layers for good, others streamed. Layers count as alike, as in the paper.
Communication counts as in the paper; its code has 0 there. Android disks count by their sequential speed, as
in the paper's table; its code takes the random one there as on macOS. And all is done again from two other
starts (`Start`), and the best by Halda's own estimate taken: from the first the sets often settle where a
device holds a layer more than fits, since one that is said to have too little must hold at least what fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from math import inf

import highspy

from edged.planning.cost import Problem, RingCost
from edged.planning.plan import Objective
from edged.planning.uneven import Windows, snapped, without_empty

SLOWEST_DISK = 0.1e9  # bytes per second; below it nothing may be read again for every token
MOST_ITERATIONS = 20  # of the sets; they settle in two or three
HEAD_FIRST = 1.01  # by which prima.cpp makes the head's layers count for less


class Set(Enum):
    M1 = "macOS without Metal, too little memory"
    M2 = "macOS with Metal, too little memory"
    M3 = "Linux or Android, too little memory"
    M4 = "enough memory, or too slow a disk"


class Start(Enum):
    RAM = "layers in proportion to RAM"
    VRAM = "layers in proportion to RAM and VRAM"
    LITTLE = "a layer each, so that all have enough memory"


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
    weight: float  # of its CPU layers' seconds

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


_Known = dict[tuple[tuple[_Device, ...], tuple[Set, ...]], list[Assignment]]


def best_ring(problem: Problem, objective: Objective) -> RingCost | None:
    """Halda's assignment as a ring of edged; None where the programme has no solution that fits."""
    for assignment in assignments(problem):  # by its own estimate, the first that the true figures admit
        ring = _ring(problem, assignment, objective)
        if ring is not None:
            return ring
    return None


def assignments(problem: Problem) -> list[Assignment]:
    """The assignments for the sets that were settled on, one for every number of rounds, the best first."""
    known: _Known = {}
    return min(
        (_from(problem, start, known) for start in Start),
        key=lambda found: found[0].seconds if found else inf,
    )


def _from(problem: Problem, start: Start, known: _Known) -> list[Assignment]:
    names = [problem.head, *(name for name in problem.devices if name != problem.head)]
    while True:
        devices = [_device(problem, name, names) for name in names]
        found = _settled(devices, problem.model.n_layers, start, known)
        if not found:
            return []
        windows = zip(names[1:], found[0].windows[1:], strict=True)
        if not (weak := {name for name, window in windows if window == 1}):
            return found
        names = [name for name in names if name not in weak]


def _settled(devices: Sequence[_Device], n_layers: int, start: Start, known: _Known) -> list[Assignment]:
    """Sets assumed, solved for every number of rounds and computed again until they stay."""
    rounds, windows, on_gpu = 1, *_first_windows(devices, n_layers, start)
    factors = [k for k in range(1, max(1, n_layers // 2) + 1) if n_layers % k == 0]
    forced: set[str] = set()
    before: list[Set] = []
    kept: list[Assignment] = []
    for _ in range(MOST_ITERATIONS):
        sets = [
            Set.M4 if device.name in forced else _set_of(device, rounds * window, rounds * gpu)
            for device, window, gpu in zip(devices, windows, on_gpu, strict=True)
        ]
        if sets == before:
            break
        before = sets
        asked = tuple(devices), tuple(sets)
        if asked not in known:  # starts often settle on the same sets
            ones = [_programme(devices, sets, k, n_layers // k) for k in factors]
            known[asked] = [one for one in ones if one is not None]
        solved = list(known[asked])
        if not solved:
            break  # what was found before stands
        solved.sort(key=lambda one: one.seconds)
        unchanged = bool(kept) and kept[0] == solved[0]
        kept, best = solved, solved[0]
        if _is_lopsided(devices, best, sets):
            overloaded = [device for device, one in zip(devices, sets, strict=True) if one is not Set.M4]
            if overloaded:
                forced.add(min(overloaded, key=lambda device: device.disk).name)
            continue  # with the windows as they were
        if unchanged:
            break
        rounds, windows, on_gpu = best.rounds, best.windows, best.on_gpu
    return kept


def _first_windows(
    devices: Sequence[_Device], n_layers: int, start: Start
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """One layer at least; on a GPU all of them, or as many as it holds where its memory counts."""
    if start is Start.LITTLE:
        return (1,) * len(devices), (0,) * len(devices)
    with_vram = start is Start.VRAM
    room = [one.memory + (one.gpu_memory if with_vram and not one.mac else 0.0) for one in devices]
    windows = [max(1, round(n_layers * own / max(1.0, sum(room)))) for own in room]
    largest = max(range(len(devices)), key=lambda i: windows[i])
    windows[largest] += n_layers - sum(windows)
    on_gpu = [0 if one.gpu is None else window for one, window in zip(devices, windows, strict=True)]
    if with_vram:
        on_gpu = [min(gpu, _most_on_gpu(one, 1)) for one, gpu in zip(devices, on_gpu, strict=True)]
    return tuple(windows), tuple(on_gpu)


def _is_lopsided(devices: Sequence[_Device], solved: Assignment, sets: Sequence[Set]) -> bool:
    """Whether VRAM stays free while layers run on a GPU's neighbour or are read from disk."""
    each = list(zip(devices, solved.windows, solved.on_gpu, sets, strict=True))
    if any(window == 1 and gpu == 0 for _, window, gpu, _ in each):
        return False  # a device is to be dropped first
    free = any(
        device.gpu is not None and gpu < _most_on_gpu(device, solved.rounds) for device, _, gpu, _ in each
    )
    return free and any(
        window > gpu if device.gpu is not None else one is not Set.M4 for device, window, gpu, one in each
    )


def _device(problem: Problem, name: str, names: Sequence[str]) -> _Device:
    costs, of = problem.devices[name], problem.of
    n = problem.model.n_layers
    is_head = name == problem.head
    successor = names[(list(names).index(name) + 1) % len(names)]
    fixed = of.overhead + (of.last_overhead + problem.model.output_memory if is_head else 0)
    gpu, mac = costs.gpu, costs.profile.os == "macos"
    return _Device(
        name=name,
        cpu=costs.cpu.decode.prefix[-1] / n,
        gpu=None if gpu is None else gpu.decode.prefix[-1] / n,
        way=problem.hop_s(name, successor) if successor != name else 0.0,
        layer=of.weights.prefix[-1] / n,
        kept=(of.weights.prefix[-1] + of.cache.prefix[-1]) / n,
        memory=max(
            0.0, (costs.gpu_budget if mac and gpu is not None else costs.profile.memory_budget) - fixed
        ),
        gpu_memory=max(0.0, costs.gpu_budget - of.overhead),
        disk=(costs.profile.disk_random or costs.disk) if mac else costs.disk,
        mac=mac,
        constant=costs.cpu.output if is_head else 0.0,
        weight=1.0 / HEAD_FIRST if is_head else 1.0,
    )


def _most_on_gpu(device: _Device, rounds: int) -> int:
    return int(device.gpu_memory // device.kept) // rounds if device.gpu is not None else 0


def _set_of(device: _Device, layers: float, on_gpu: float) -> Set:
    if device.disk < SLOWEST_DISK or device.fits(layers, on_gpu):
        return Set.M4
    if device.mac:
        return Set.M1 if device.gpu is None else Set.M2
    return Set.M3


class QuietHighs(highspy.Highs):
    """HiGHS greets on standard output when it enables its callbacks, before anybody could tell it not to."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def enableCallbacks(self) -> None:  # noqa: N802 - HiGHS chose the name
        self.setOptionValue("output_flag", False)
        super().enableCallbacks()  # type: ignore[no-untyped-call]


def _programme(devices: Sequence[_Device], sets: Sequence[Set], rounds: int, total: int) -> Assignment | None:
    """The integer programme for these sets, by HiGHS; None where it has no solution."""
    highs = QuietHighs()
    highs.setOptionValue("threads", 1)
    integer = highspy.HighsVarType.kInteger
    windows = [highs.addVariable(lb=1, ub=total, type=integer) for _ in devices]
    on_gpu = [highs.addVariable(lb=0, ub=_most_on_gpu(one, rounds), type=integer) for one in devices]
    cost = 0.0
    constant = 0.0
    for device, kind, window, gpu in zip(devices, sets, windows, on_gpu, strict=True):
        nbytes = {Set.M4: 0.0, Set.M2: device.layer}.get(kind, device.kept)
        read = nbytes / device.disk if nbytes else 0.0
        cost = cost + rounds * device.weight * (device.cpu + read) * window
        if device.gpu is not None:
            saved = device.gpu - device.cpu - (read if kind is Set.M3 else 0.0)
            cost = cost + rounds * saved * gpu
        constant += rounds * device.way + device.constant
        if kind in (Set.M1, Set.M3):
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
