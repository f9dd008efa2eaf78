"""Every sensible way for one device to take n layers, for all n at once, where all layers are alike.

Given the layers on the GPU and the places in the read-ahead buffer, as few layers are streamed as memory
demands: one more would cost both compute thread and disk. So the ways are counted by these two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edged.planning.cost import visit
from edged.planning.deal import Closing, Deal, closings
from edged.planning.device_costs import DeviceCosts, ModelCosts
from edged.planning.streamed import READ_AHEAD

Grid = NDArray[np.float64]


@dataclass(frozen=True)
class Options:
    """Ways of one device in a ring of k rounds; arrays of shape (layers + 1, ways), inf where impossible."""

    closings: tuple[Closing, ...]
    busy: Grid  # seconds of its visits per token
    disk: Grid  # seconds of its disk per token
    stage: Grid  # seconds per token with many streams
    gpu: Grid
    streamed: Grid
    read_ahead: Grid
    closing: Grid  # index into `closings`

    def deal(self, layers: int, way: int) -> Deal:
        return Deal(
            layers=layers,
            gpu=int(self.gpu[layers, way]),
            streamed=int(self.streamed[layers, way]),
            read_ahead=int(self.read_ahead[layers, way]),
            closing=self.closings[int(self.closing[layers, way])],
        )

    def least_busy(self, disk_within: float, stage_within: float) -> Grid:
        """Per number of layers, the least busy time of ways within both limits."""
        allowed = (self.disk <= disk_within) & (self.stage <= stage_within)
        return np.asarray(np.where(allowed, self.busy, np.inf).min(axis=1))

    def best_way(self, layers: int, disk_within: float, stage_within: float) -> int:
        allowed = (self.disk[layers] <= disk_within) & (self.stage[layers] <= stage_within)
        return int(np.where(allowed, self.busy[layers], np.inf).argmin())


def options(
    device: DeviceCosts, of: ModelCosts, rounds: int, closing: int = 0, waiting: bool = True
) -> Options | None:
    """The ways of `device`, None if there are none; a head has `closing` layers more, in its last window.

    waiting: False as if no window ever waited for the disk, so that one place in the buffer is enough.
    """
    found: list[tuple[Grid, ...]] = []
    held = closings(device, of) if closing else (Closing(),)
    for i, how in enumerate(held):
        ways = _ways(device, of, rounds, closing, how, waiting)
        found += [(*columns, np.full(columns[0].shape, float(i))) for columns in ways]
    if not found:
        return None
    columns = [np.concatenate(column, axis=1) for column in zip(*found, strict=True)]
    return Options(held, *columns)


def _ways(
    device: DeviceCosts, of: ModelCosts, rounds: int, closing: int, how: Closing, waiting: bool
) -> list[tuple[Grid, ...]]:
    n_layers = of.model.n_layers
    size, cache = of.weights.of(0, 1), of.cache.of(0, 1)
    memory, gpu_memory, disk_free, fixed, reading = _without_closing(device, of, closing, how)
    if min(memory, gpu_memory, disk_free) < 0 or not np.isfinite(reading):
        return []

    cpu_s = device.cpu.decode.of(0, 1)
    gpu_s = device.gpu.decode.of(0, 1) if device.gpu is not None else 0.0
    gpu_run = device.gpu.run if device.gpu is not None else 0.0
    read_s = size / device.disk if device.disk > 0 else np.inf
    most = n_layers - closing
    layers = np.arange(n_layers + 1, dtype=np.float64)[:, None]
    gpu_most = min(most, int(gpu_memory // (size + cache))) if device.gpu is not None else 0
    gpu = np.arange(gpu_most + 1, dtype=np.float64)[None, :]
    windows = _dealt(layers, rounds)
    possible = (layers >= rounds) & (layers <= most) & (gpu <= layers) & (layers * size <= disk_free)
    on_gpu = _windows_with_gpu(layers, gpu, windows, rounds)
    gpu_taken = gpu * (size + cache) + on_gpu * of.overhead
    possible &= gpu_taken <= gpu_memory
    if device.gpu is not None and not device.gpu_shares and gpu_s + gpu_run <= cpu_s:
        # As many as fit, or none: one more on the GPU is quicker even if it must be started for it alone.
        best = gpu_most - possible[:, ::-1].argmax(axis=1)
        at = np.stack([np.zeros_like(best), best], axis=1)
        gpu = at.astype(np.float64)
        possible = np.take_along_axis(possible, at, axis=1)
        on_gpu = np.take_along_axis(on_gpu, at, axis=1)
        gpu_taken = np.take_along_axis(gpu_taken, at, axis=1)
    gpu = np.broadcast_to(gpu, possible.shape)
    on_cpu = np.maximum(layers - gpu, 0.0)
    cpu_windows = _dealt(on_cpu, rounds)
    taken = on_cpu * cache + rounds * of.overhead + (gpu_taken if device.gpu_shares else 0.0)
    run = rounds * device.cpu.run + on_gpu * gpu_run + fixed
    work = [c * cpu_s + (w - c) * gpu_s for w, c in zip(windows, cpu_windows, strict=True)]

    # All numbers of places in the read-ahead buffer at once, along the first axis.
    most_places = _most_places(memory, size, most, rounds, np.isfinite(read_s))
    places = np.arange((most_places if waiting else min(1, most_places)) + 1, dtype=np.float64)
    places = places[:, None, None]
    room = np.floor((memory - taken - np.maximum(places, READ_AHEAD * how.streamed) * size) / size)
    streamed = np.maximum(on_cpu - room, 0.0)
    used = (places > 0) & (streamed > 0) & (np.ceil(streamed / rounds) >= places)
    fits = possible & (room >= 0) & (used | ((places == 0) & (streamed == 0)))
    fits &= device.mixes | ~(((streamed > 0) | how.streamed) & ((gpu > 0) | how.gpu))
    busy = np.broadcast_to(run, streamed.shape).copy()
    for seconds, in_ram, from_disk in zip(work, cpu_windows, _dealt(streamed, rounds), strict=True):
        if waiting and np.isfinite(read_s):
            unhidden = in_ram // np.maximum(from_disk, 1.0) - 1 + 2 * of.largest_tensor
            while_reading = unhidden * cpu_s + (from_disk - places) * read_s
            busy += np.where(from_disk > places, np.maximum(seconds, while_reading), seconds)
        else:
            busy += seconds
    disk = streamed * (read_s if np.isfinite(read_s) else 0.0) + reading
    busy, disk = np.where(fits, busy, np.inf), np.where(fits, disk, np.inf)
    overhead = (rounds + (closing > 0)) * device.profile.hop_overhead_s
    stage = np.maximum(busy + overhead, disk)
    columns = (busy, disk, stage, gpu, streamed, places)
    return _one_column_per_way(columns, fits)


def _without_closing(
    device: DeviceCosts, of: ModelCosts, closing: int, how: Closing
) -> tuple[float, float, float, float, float]:
    """RAM, VRAM and disk that the closing window leaves, in bytes; the seconds that it and its disk take."""
    profile = device.profile
    memory, gpu_memory, disk_free = profile.memory_budget, device.gpu_budget, profile.disk_free
    if not closing:
        return memory, gpu_memory, disk_free, 0.0, 0.0
    first, last = of.model.n_layers - closing, of.model.n_layers
    cost = visit(device, of, how.hop(profile.device, first, last))
    stored = of.weights.of(first, last) + of.model.output_bytes
    seconds = cost.compute + cost.stall
    return memory - cost.memory, gpu_memory - cost.gpu_memory, disk_free - stored, seconds, cost.disk


def _one_column_per_way(columns: tuple[Grid, ...], fits: NDArray[np.bool_]) -> list[tuple[Grid, ...]]:
    """From (places, layers, gpu) to (layers, ways), without the ways that never fit."""

    def flat(grid: Grid) -> Grid:
        return np.moveaxis(np.broadcast_to(grid, fits.shape), 0, 1).reshape(fits.shape[1], -1)

    useful = np.moveaxis(fits, 0, 1).reshape(fits.shape[1], -1).any(axis=0)
    return [tuple(flat(column)[:, useful] for column in columns)] if useful.any() else []


def _windows_with_gpu(layers: Grid, gpu: Grid, windows: list[Grid], rounds: int) -> Grid:
    """Windows that hold a layer on the GPU where so many of so many are."""
    cpu_windows = _dealt(np.maximum(layers - gpu, 0.0), rounds)
    return np.asarray(sum((w > c).astype(np.float64) for w, c in zip(windows, cpu_windows, strict=True)))


def _dealt(total: Grid, rounds: int) -> list[Grid]:
    """What `spread` gives each of the rounds, the first ones first."""
    each, more = np.divmod(total, rounds)
    return [each + (turn < more) for turn in range(rounds)]


def _most_places(memory: float, size: float, most: int, rounds: int, has_disk: bool) -> int:
    """Of the read-ahead buffer: as devices read ahead, and no more than memory holds."""
    return min(READ_AHEAD, int(memory // size), -(-most // rounds)) if has_disk else 0
