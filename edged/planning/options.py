"""Every sensible way for one device to take n layers, for all n at once, where all layers are alike.

Given the layers on the GPU and the places in the read-ahead buffer, as few layers are streamed as memory
demands: one more would cost both compute thread and disk. So the ways are counted by these two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edged.planning.cost import visit
from edged.planning.deal import Deal
from edged.planning.device_costs import DeviceCosts, ModelCosts
from edged.planning.plan import Hop

Grid = NDArray[np.float64]


@dataclass(frozen=True)
class Options:
    """Ways of one device in a ring of k rounds; arrays of shape (layers + 1, ways), inf where impossible."""

    busy: Grid  # seconds of its visits per token
    disk: Grid  # seconds of its disk per token
    stage: Grid  # seconds per token with many streams
    gpu: Grid
    streamed: Grid
    read_ahead: Grid
    closing_gpu: Grid

    def deal(self, layers: int, way: int) -> Deal:
        return Deal(
            layers=layers,
            gpu=int(self.gpu[layers, way]),
            streamed=int(self.streamed[layers, way]),
            read_ahead=int(self.read_ahead[layers, way]),
            closing_gpu=bool(self.closing_gpu[layers, way]),
        )

    def least_busy(self, disk_within: float, stage_within: float) -> Grid:
        """Per number of layers, the least busy time of ways within both limits."""
        allowed = (self.disk <= disk_within) & (self.stage <= stage_within)
        return np.asarray(np.where(allowed, self.busy, np.inf).min(axis=1))

    def best_way(self, layers: int, disk_within: float, stage_within: float) -> int:
        allowed = (self.disk[layers] <= disk_within) & (self.stage[layers] <= stage_within)
        return int(np.where(allowed, self.busy[layers], np.inf).argmin())


def options(device: DeviceCosts, of: ModelCosts, rounds: int, closing: int = 0) -> Options | None:
    """The ways of `device`, None if there are none; a head has `closing` layers more, in its last window."""
    found: list[tuple[Grid, ...]] = []
    for closing_gpu in (False, True) if closing and device.gpu is not None else (False,):
        found += _ways(device, of, rounds, closing, closing_gpu)
    if not found:
        return None
    return Options(*(np.concatenate(column, axis=1) for column in zip(*found, strict=True)))


def _ways(  # noqa: PLR0915 - one formula after the other
    device: DeviceCosts, of: ModelCosts, rounds: int, closing: int, closing_gpu: bool
) -> list[tuple[Grid, ...]]:
    n_layers = of.model.n_layers
    size, cache = of.weights.of(0, 1), of.cache.of(0, 1)
    memory, gpu_memory, disk_free = (
        float(device.profile.memory_budget),
        float(device.gpu_budget),
        float(device.profile.disk_free),
    )
    fixed = 0.0
    if closing:
        hop = Hop(
            device=device.profile.device,
            first=n_layers - closing,
            last=n_layers,
            gpu_layers=closing if closing_gpu else 0,
        )
        last = visit(device, of, hop)
        memory -= last.memory
        gpu_memory -= last.gpu_memory
        disk_free -= closing * size + of.model.output_bytes
        fixed = last.compute
    if min(memory, gpu_memory, disk_free) < 0:
        return []

    cpu_s = device.cpu.decode.of(0, 1)
    gpu_s = device.gpu.decode.of(0, 1) if device.gpu is not None else 0.0
    gpu_run = device.gpu.run if device.gpu is not None else 0.0
    read_s = size / device.disk if device.disk > 0 else np.inf
    most = n_layers - closing
    layers = np.arange(n_layers + 1, dtype=np.float64)[:, None]
    gpu_most = min(most, int(gpu_memory // (size + cache))) if device.gpu is not None else 0
    gpu = np.arange(gpu_most + 1, dtype=np.float64)[None, :]
    on_cpu = layers - gpu
    possible = (layers >= rounds) & (layers <= most) & (on_cpu >= 0) & (layers * size <= disk_free)
    windows = _dealt(layers, rounds)
    cpu_windows = _dealt(np.maximum(on_cpu, 0), rounds)
    gpu_windows = [a - b for a, b in zip(windows, cpu_windows, strict=True)]
    on_gpu = np.asarray(sum((g > 0).astype(np.float64) for g in gpu_windows))
    gpu_taken = gpu * (size + cache) + on_gpu * of.overhead
    possible &= gpu_taken <= gpu_memory
    taken = on_cpu * cache + rounds * of.overhead + (gpu_taken if device.gpu_shares else 0.0)
    run = rounds * device.cpu.run + on_gpu * gpu_run
    work = [c * cpu_s + g * gpu_s for c, g in zip(cpu_windows, gpu_windows, strict=True)]
    overhead = (rounds + (closing > 0)) * device.profile.hop_overhead_s

    found = []
    for places in range(_most_places(memory, size, most, rounds, np.isfinite(read_s)) + 1):
        room = np.floor((memory - taken - places * size) / size)
        streamed = np.maximum(on_cpu - room, 0.0)
        if places == 0:
            fits = possible & (room >= 0) & (streamed == 0)
            busy = sum(work) + run + fixed
            disk = np.zeros_like(on_cpu)
        else:
            fits = possible & (room >= 0) & (streamed > 0) & (np.ceil(streamed / rounds) >= places)
            if not fits.any():
                continue
            busy = run + fixed
            for seconds, from_disk in zip(work, _dealt(streamed, rounds), strict=True):
                waiting = seconds - from_disk * cpu_s + 2 * cpu_s + (from_disk - places) * read_s
                busy = busy + np.where(from_disk > places, np.maximum(seconds, waiting), seconds)
            disk = streamed * (read_s + (cpu_s if places == 1 else 0.0))
        if not fits.any():
            continue
        useful = fits.any(axis=0)
        busy, disk = np.where(fits, busy, np.inf), np.where(fits, disk, np.inf)
        stage = np.maximum(busy + overhead, disk)
        shape = busy.shape
        columns = (
            busy,
            disk,
            stage,
            np.broadcast_to(gpu, shape),
            streamed,
            np.full(shape, float(places)),
            np.full(shape, float(closing_gpu)),
        )
        found.append(tuple(np.asarray(column)[:, useful] for column in columns))
    return found


def _dealt(total: Grid, rounds: int) -> list[Grid]:
    """What `spread` gives each of the rounds, the first ones first."""
    each, more = np.divmod(total, rounds)
    return [each + (turn < more) for turn in range(rounds)]


def _most_places(memory: float, size: float, most: int, rounds: int, has_disk: bool) -> int:
    """Of the read-ahead buffer: no more than memory holds, nor than a window can have streamed layers."""
    return min(int(memory // size), -(-most // rounds)) if has_disk else 0
