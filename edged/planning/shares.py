"""Ways of one device to hold many sets of windows at once, by the true layers: `arrange.ways` in arrays.

For each set, number of layers on the GPU and places in the read-ahead buffer, as few layers are streamed as
memory demands. What they cost is what `edged.planning.cost.visit` says of each window.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edged.planning.cost import visit
from edged.planning.deal import Deal
from edged.planning.device_costs import DeviceCosts, ModelCosts
from edged.planning.plan import Hop

Grid = NDArray[np.float64]
Counted = NDArray[np.int64]

MOST_STEPS = 8  # to the least number of streamed layers that memory allows


@dataclass(frozen=True)
class Shares:
    """Ways of one device; arrays of shape (sets of windows, ways), inf where impossible."""

    busy: Grid  # seconds of its visits per token
    disk: Grid  # seconds of its disk per token
    stage: Grid  # seconds per token with many streams
    layers: Counted  # of each set
    gpu: Counted
    streamed: Counted
    read_ahead: Counted
    closing_gpu: Counted

    def least_busy(self, disk_within: float, stage_within: float) -> Grid:
        """Per set of windows, the least busy time of ways within both limits."""
        allowed = (self.disk <= disk_within) & (self.stage <= stage_within)
        return np.asarray(np.where(allowed, self.busy, np.inf).min(axis=1))

    def deal(self, at: int, disk_within: float, stage_within: float) -> Deal:
        """The way that `least_busy` means for set `at`."""
        allowed = (self.disk[at] <= disk_within) & (self.stage[at] <= stage_within)
        way = int(np.where(allowed, self.busy[at], np.inf).argmin())
        return Deal(
            layers=int(self.layers[at]),
            gpu=int(self.gpu[at, way]),
            streamed=int(self.streamed[at, way]),
            read_ahead=int(self.read_ahead[at, way]),
            closing_gpu=bool(self.closing_gpu[at, way]),
        )


class Layers:
    """A model's layers as arrays of prefix sums, one entry per boundary."""

    def __init__(self, of: ModelCosts) -> None:
        self.of = of
        self.weights = np.array(of.weights.prefix)
        self.cache = np.array(of.cache.prefix)

    @cached_property
    def largest(self) -> Grid:
        """[a, z]: bytes of the largest of layers [a, z)."""
        n = self.of.model.n_layers
        sizes = np.broadcast_to(np.array(self.of.model.layer_bytes, dtype=np.float64), (n, n))
        found = np.zeros((n + 1, n + 1))
        found[:n, 1:] = np.maximum.accumulate(np.triu(sizes), axis=1)
        return found


def shares(
    device: DeviceCosts,
    layers: Layers,
    first: Counted,
    last: Counted,
    on_gpu: Counted,
    places: Counted,
    closing: tuple[int, int] | None = None,
) -> Shares:
    """The ways of `device` for every set of windows [first, last), one window per round.

    first, last: (sets, rounds).  on_gpu: (sets, some) numbers of layers on the GPU.  places: (some,), of the
    read-ahead buffer, 0 among them.  closing: the head's last window besides.
    """
    table = _Table(device, layers, first, last)
    found = [
        table.ways(on_gpu, places, closing, closing_gpu)
        for closing_gpu in ((False, True) if closing and device.gpu is not None else (False,))
    ]
    columns = [np.concatenate(column, axis=1) for column in zip(*found, strict=True)]
    busy, disk, stage, gpu, streamed, read_ahead, closing_gpu_ = columns
    return Shares(
        busy,
        disk,
        stage,
        table.sizes.sum(axis=1),
        gpu.astype(np.int64),
        streamed.astype(np.int64),
        read_ahead.astype(np.int64),
        closing_gpu_.astype(np.int64),
    )


class _Table:
    def __init__(self, device: DeviceCosts, layers: Layers, first: Counted, last: Counted) -> None:
        self.device, self.layers = device, layers
        self.cpu = np.array(device.cpu.decode.prefix)
        self.gpu = np.array(device.gpu.decode.prefix) if device.gpu is not None else np.zeros_like(self.cpu)
        self.sizes = last - first
        self.first, self.last = first[:, None, None, :], last[:, None, None, :]
        self.kept = layers.weights + layers.cache

    def ways(
        self, on_gpu: Counted, places: Counted, closing: tuple[int, int] | None, closing_gpu: bool
    ) -> tuple[NDArray[np.generic], ...]:
        device, of = self.device, self.layers.of
        total, rounds = self.sizes.sum(axis=1), self.sizes.shape[1]
        stored = (self.layers.weights[self.last] - self.layers.weights[self.first]).sum(axis=-1)[:, :, 0]
        memory, gpu_memory = float(device.profile.memory_budget), float(device.gpu_budget)
        disk_free, fixed = float(device.profile.disk_free), 0.0
        if closing is not None:
            n_gpu = closing[1] - closing[0] if closing_gpu else 0
            own = visit(
                device, of, Hop(device=device.name, first=closing[0], last=closing[1], gpu_layers=n_gpu)
            )
            memory, gpu_memory, fixed = memory - own.memory, gpu_memory - own.gpu_memory, own.compute
            disk_free -= of.weights.of(*closing) + of.model.output_bytes
        gpu = np.minimum(on_gpu, total[:, None])[:, :, None]  # (sets, gpu, 1)
        rooms = self.sizes[:, None, None, :]
        cpu = spread_many(total[:, None, None] - gpu, rooms)  # (sets, gpu, 1, rounds)
        on_cpu = cpu.sum(axis=-1)
        read_ahead = places[None, None, :]
        streamed, fits = self._least_streamed(cpu, rooms - cpu, on_cpu, read_ahead, memory, gpu_memory)
        fits &= (stored <= disk_free)[:, :, None]
        if device.disk <= 0:
            fits &= streamed == 0
        busy, disk = self._seconds(cpu, rooms - cpu, spread_many(streamed, cpu), read_ahead)
        busy = busy + fixed
        overhead = (rounds + (closing is not None)) * device.profile.hop_overhead_s
        stage = np.maximum(busy + overhead, disk)
        shape = fits.shape
        grids = (
            np.where(fits, busy, np.inf),
            np.where(fits, disk, np.inf),
            np.where(fits, stage, np.inf),
            np.broadcast_to(gpu, shape),
            streamed,
            np.broadcast_to(read_ahead, shape),
            np.broadcast_to(np.int64(closing_gpu), shape),
        )
        return tuple(grid.reshape(shape[0], -1) for grid in grids)

    def _least_streamed(
        self,
        cpu: Counted,
        gpu: Counted,
        on_cpu: Counted,
        read_ahead: Counted,
        memory: float,
        gpu_memory: float,
    ) -> tuple[Counted, NDArray[np.bool_]]:
        """As few layers as memory demands, in some window as many as the buffer has places; and what fits."""
        rounds = cpu.shape[-1]
        largest = self.layers.of.model.layer_bytes
        step = float(max(largest))
        least = np.where(read_ahead > 0, (read_ahead - 1) * rounds + 1, 0)
        most = np.where(read_ahead > 0, on_cpu, 0)
        streamed = np.broadcast_to(least, np.broadcast_shapes(least.shape, on_cpu.shape)).copy()
        possible = streamed <= most
        for _ in range(MOST_STEPS):
            taken, gpu_taken = self._bytes(cpu, gpu, spread_many(np.minimum(streamed, most), cpu), read_ahead)
            excess = taken - memory
            more = possible & (excess > 0) & (streamed < most)
            if not more.any():
                break
            streamed = np.where(more, np.minimum(streamed + np.maximum(1, excess // step), most), streamed)
            streamed = streamed.astype(np.int64)
        taken, gpu_taken = self._bytes(cpu, gpu, spread_many(np.minimum(streamed, most), cpu), read_ahead)
        return np.minimum(streamed, most), possible & (taken <= memory) & (gpu_taken <= gpu_memory)

    def _bytes(
        self, cpu: Counted, gpu: Counted, streamed: Counted, read_ahead: Counted
    ) -> tuple[Grid, Grid]:
        of = self.layers.of
        first_gpu, first_streamed = self.first + cpu - streamed, self.last - streamed
        has_gpu = gpu > 0
        on_gpu = (self.kept[first_streamed] - self.kept[first_gpu] + of.overhead * has_gpu).sum(axis=-1)
        cache = self.layers.cache[self.last] - self.layers.cache[first_streamed]
        taken = (self.kept[first_gpu] - self.kept[self.first] + cache + of.overhead).sum(axis=-1)
        buffer = self.layers.largest[first_streamed, np.broadcast_to(self.last, first_streamed.shape)]
        taken = taken + buffer.max(axis=-1) * read_ahead
        return taken + (on_gpu if self.device.gpu_shares else 0.0), on_gpu

    def _seconds(
        self, cpu: Counted, gpu: Counted, streamed: Counted, read_ahead: Counted
    ) -> tuple[Grid, Grid]:
        first_gpu, first_streamed = self.first + cpu - streamed, self.last - streamed
        on_cpu = self.cpu[first_gpu] - self.cpu[self.first] + self.cpu[self.last] - self.cpu[first_streamed]
        compute = on_cpu + self.gpu[first_streamed] - self.gpu[first_gpu]
        run = self.device.cpu.run + (self.device.gpu.run if self.device.gpu is not None else 0.0) * (gpu > 0)
        busy = compute + run
        weights, speed = self.layers.weights, self.device.disk
        if speed <= 0:
            return busy.sum(axis=-1), np.zeros(busy.shape[:-1])
        disk = (weights[self.last] - weights[first_streamed]) / speed
        places = np.broadcast_to(read_ahead[..., None], streamed.shape)
        waits = streamed > places
        unread = (weights[self.last] - weights[np.minimum(first_streamed + places, self.last)]) / speed
        unhidden = cpu // np.maximum(streamed, 1) - 1 + 2 * self.layers.of.largest_tensor  # layers
        waiting = unhidden * on_cpu / np.maximum(cpu, 1) + unread
        stall = np.where(waits, np.maximum(0.0, waiting - compute), 0.0)
        return (busy + stall).sum(axis=-1), disk.sum(axis=-1)


def spread_many(total: Counted, rooms: Counted) -> Counted:
    """`deal.spread` for many totals at once.  total: (...,).  rooms: (..., places), broadcast against it."""
    n = rooms.shape[-1]
    if n == 1:
        return np.broadcast_to(
            total[..., None], np.broadcast_shapes(total.shape + (1,), rooms.shape)
        )
    ordered = np.sort(rooms, axis=-1)
    left = np.broadcast_to(total, np.broadcast_shapes(total.shape, rooms.shape[:-1]))
    level = np.zeros_like(left)
    full = np.ones(left.shape, dtype=bool)  # all places so far
    for i in range(n):  # the smallest places are full first
        share = left // (n - i)
        before, full = full, full & (ordered[..., i] <= share)
        level = np.where(full, ordered[..., i], np.where(before, share, level))
        left = np.where(full, left - ordered[..., i], left)
    given = np.minimum(rooms, level[..., None])
    more = rooms > given
    extra = total - given.sum(axis=-1)
    return given + (more & (np.cumsum(more, axis=-1) <= extra[..., None]))
