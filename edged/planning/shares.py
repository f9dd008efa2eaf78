"""Ways of devices to hold given windows, many at once, by the true layers: `arrange.ways` in arrays.

For each set of windows, number of layers on the GPU and places in the read-ahead buffer, as few layers are
streamed as memory demands. What they cost is what `edged.planning.cost.visit` says of each window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edged.planning.cost import Problem, visit
from edged.planning.deal import Closing, Deal, closings
from edged.planning.device_costs import DeviceCosts

Grid = NDArray[np.float64]
Counted = NDArray[np.int64]
Truths = NDArray[np.bool_]

MOST_STEPS = 8  # to the least number of streamed layers that memory allows


@dataclass(frozen=True)
class Asked:
    """Sets of windows, a row each, and the ways to try: of each row several, one after the other."""

    device: Counted  # (rows,): index among the devices
    first: Counted  # (rows, windows): layers [first, last); an empty window is none
    last: Counted
    tail: Counted  # (rows,): where the head's last window begins, an index into `Holder.tails`
    row: Counted  # (ways,)
    column: Counted  # (ways,): counted within the row
    gpu: Counted  # (ways,): layers on the GPU
    closing: Counted  # (ways,): how the head has its last window, an index into `Holder.closings`
    places: Counted  # (ways,): of the read-ahead buffer; 0: nothing is streamed


@dataclass(frozen=True)
class Shares:
    """What the ways of each row cost; arrays of shape (rows, ways), inf where impossible."""

    busy: Grid  # seconds of its visits per token
    disk: Grid  # seconds of its disk per token
    stage: Grid  # seconds per token with many streams
    layers: Counted  # (rows,)
    gpu: Counted
    streamed: Counted
    read_ahead: Counted
    closing: Counted
    closings: tuple[Closing, ...]

    def least_busy(self, disk_within: float, stage_within: float) -> Grid:
        """Of each row, the least busy time of ways within both limits."""
        allowed = (self.disk <= disk_within) & (self.stage <= stage_within)
        return np.asarray(np.where(allowed, self.busy, np.inf).min(axis=1))

    def replace(self, rows: Counted, others: Shares) -> None:
        """Other rows in the place of some of these."""
        for field, new in vars(others).items():
            old = getattr(self, field)
            if field == "closings":
                continue
            if old.ndim == 1:
                old[rows] = new
                continue
            old[rows] = np.inf if old.dtype == np.float64 else 0
            old[rows, : new.shape[1]] = new

    def deal(self, row: int, disk_within: float, stage_within: float) -> Deal:
        """The way that `least_busy` means."""
        allowed = (self.disk[row] <= disk_within) & (self.stage[row] <= stage_within)
        way = int(np.where(allowed, self.busy[row], np.inf).argmin())
        return Deal(
            layers=int(self.layers[row]),
            gpu=int(self.gpu[row, way]),
            streamed=int(self.streamed[row, way]),
            read_ahead=int(self.read_ahead[row, way]),
            closing=self.closings[int(self.closing[row, way])],
        )


class Holder:
    """The figures of a problem's layers and of some of its devices, the head first, as arrays."""

    def __init__(self, problem: Problem, names: Sequence[str], most_closing: int = 1) -> None:
        """most_closing: places' worth of layers that the last window may have."""
        self.problem, self.names = problem, tuple(names)
        self.devices = [problem.devices[name] for name in names]
        self.tails = tuple(reversed(problem.of.places[1:-1]))[:most_closing]  # the shortest window first
        of = problem.of
        self.closings = closings(self.devices[0], of)
        self._weights, cache = np.array(of.weights.prefix), np.array(of.cache.prefix)
        self._cache, self._kept = cache, self._weights + cache
        self._largest = _largest(of.model.layer_bytes)
        self._cpu = np.array([one.cpu.decode.prefix for one in self.devices])
        no_gpu = np.zeros(of.model.n_layers + 1)
        self._gpu = np.array(
            [no_gpu if one.gpu is None else np.array(one.gpu.decode.prefix) for one in self.devices]
        )
        self._cpu_run = np.array([one.cpu.run for one in self.devices])
        self._gpu_run = np.array([0.0 if one.gpu is None else one.gpu.run for one in self.devices])
        self._hop_overhead = np.array([one.profile.hop_overhead_s for one in self.devices])
        self._shared = np.array([float(one.gpu_shares) for one in self.devices])
        self._speed = np.array([one.disk for one in self.devices])
        # what is left beside the closing window
        self._left = np.array(
            [
                [[self._beside(one, at, how) for how in self.closings] for at in self.tails]
                for one in self.devices
            ]
        )
        self._closing_buffer = np.array(
            [[max(of.model.layer_bytes[at:]) * how.streamed for how in self.closings] for at in self.tails],
            dtype=np.float64,
        )
        self._closing_gpu = np.array([how.gpu for how in self.closings])
        self._mixes = problem.mixes

    def _beside(
        self, device: DeviceCosts, first: int, how: Closing
    ) -> tuple[float, float, float, float, float]:
        """Bytes of RAM, VRAM and disk, and the seconds that the closing window and its disk take."""
        left = float(device.profile.memory_budget), float(device.gpu_budget), float(device.profile.disk_free)
        if device.profile.device != self.problem.head:
            return *left, 0.0, 0.0
        last = self.problem.model.n_layers
        own = visit(device, self.problem.of, how.hop(device.profile.device, first, last))
        if not np.isfinite(own.disk):
            return -1.0, -1.0, -1.0, 0.0, 0.0
        stored = self.problem.of.weights.of(first, last) + self.problem.model.output_bytes
        seconds = own.compute + own.stall, own.disk
        return left[0] - own.memory, left[1] - own.gpu_memory, left[2] - stored, *seconds

    def shares(self, asked: Asked) -> Shares:
        return _Batch(self, asked).shares()


class _Batch:
    """One evaluation; arrays of shape (ways,) and (ways, rounds)."""

    def __init__(self, holder: Holder, asked: Asked) -> None:
        self.holder, self.asked, self.of = holder, asked, holder.problem.of
        self.device = asked.device[asked.row]
        self.first, self.last = asked.first[asked.row], asked.last[asked.row]
        self.rooms = self.last - self.first
        self.total = self.rooms.sum(axis=1)
        self.windows = (self.rooms > 0).sum(axis=1)
        tail = asked.tail[asked.row]
        self.gpu = np.minimum(asked.gpu, self.total)
        left = holder._left[self.device, tail, asked.closing]
        self.memory, self.gpu_memory, self.disk_free, self.fixed, self.reading = left.T
        self.closing_buffer = np.where(self.device == 0, holder._closing_buffer[tail, asked.closing], 0.0)
        self.cpu = spread_many(self.total - self.gpu, self.rooms)
        self.on_gpu = self.rooms - self.cpu

    def shares(self) -> Shares:
        holder, asked = self.holder, self.asked
        streamed, fits = self._least_streamed()
        weights = holder._weights
        fits &= (weights[self.last] - weights[self.first]).sum(axis=1) <= self.disk_free
        fits &= (holder._speed[self.device] > 0) | (streamed == 0)
        busy, disk = self._seconds(spread_many(streamed, self.cpu))
        busy, disk = busy + self.fixed, disk + self.reading
        if not holder._mixes:
            gpu = (self.gpu > 0) | ((self.device == 0) & holder._closing_gpu[asked.closing])
            fits &= ~(gpu & ((streamed > 0) | (self.closing_buffer > 0)))
        windows = self.windows + (self.device == 0)  # the head has the closing one besides
        stage = np.maximum(busy + windows * holder._hop_overhead[self.device], disk)
        shape = len(asked.device), int(asked.column.max(initial=0)) + 1

        def costs(values: Grid) -> Grid:
            grid = np.full(shape, np.inf)
            grid[asked.row, asked.column] = np.where(fits, values, np.inf)
            return grid

        def counts(values: Counted) -> Counted:
            grid = np.zeros(shape, dtype=np.int64)
            grid[asked.row, asked.column] = values
            return grid

        return Shares(
            busy=costs(busy),
            disk=costs(disk),
            stage=costs(stage),
            layers=(asked.last - asked.first).sum(axis=1),
            gpu=counts(self.gpu),
            streamed=counts(streamed),
            read_ahead=counts(asked.places),
            closing=counts(asked.closing),
            closings=holder.closings,
        )

    def _least_streamed(self) -> tuple[Counted, Truths]:
        """As few layers as memory demands, in some window as many as the buffer has places; and what fits."""
        rounds, places = self.windows, self.asked.places
        step = float(max(self.of.model.layer_bytes))
        least = np.where(places > 0, (places - 1) * rounds + 1, 0)
        most = np.where(places > 0, self.total - self.gpu, 0)
        possible = least <= most
        streamed = np.minimum(least, most)
        taken, on_gpu = self._bytes(streamed, slice(None))
        for _ in range(MOST_STEPS):
            excess = taken - self.memory
            more = np.flatnonzero(possible & (excess > 0) & (streamed < most))
            if not more.size:
                break
            further = streamed[more] + np.maximum(1, excess[more] // step).astype(np.int64)
            streamed[more] = np.minimum(further, most[more])
            taken[more], on_gpu[more] = self._bytes(streamed[more], more)
        return streamed, possible & (taken <= self.memory) & (on_gpu <= self.gpu_memory)

    def _bytes(self, total: Counted, of: Counted | slice) -> tuple[Grid, Grid]:
        """Of RAM and of VRAM, of some ways."""
        kept, cache = self.holder._kept, self.holder._cache
        cpu, first, last = self.cpu[of], self.first[of], self.last[of]
        streamed = spread_many(total, cpu)
        first_gpu, first_streamed = first + cpu - streamed, last - streamed
        before = kept[first_gpu]
        overhead = self.of.overhead
        on_gpu = (kept[first_streamed] - before + overhead * (self.on_gpu[of] > 0)).sum(axis=1)
        taken = before - kept[first] + cache[last] - cache[first_streamed]
        buffer = self.holder._largest[first_streamed, last].max(axis=1) * self.asked.places[of]
        buffer = np.maximum(buffer, self.closing_buffer[of])
        taken = taken.sum(axis=1) + overhead * self.windows[of] + buffer
        return taken + on_gpu * self.holder._shared[self.device[of]], on_gpu

    def _seconds(self, streamed: Counted) -> tuple[Grid, Grid]:
        """Of its visits, and of its disk."""
        holder, device = self.holder, self.device[:, None]
        first_gpu, first_streamed = self.first + self.cpu - streamed, self.last - streamed
        cpu, gpu, weights = holder._cpu, holder._gpu, holder._weights
        on_cpu = cpu[device, first_gpu] - cpu[device, self.first]
        on_cpu = on_cpu + cpu[device, self.last] - cpu[device, first_streamed]
        compute = on_cpu + gpu[device, first_streamed] - gpu[device, first_gpu]
        run = holder._cpu_run[device] * (self.rooms > 0) + holder._gpu_run[device] * (self.on_gpu > 0)
        if not streamed.any():
            return (compute + run).sum(axis=1), np.zeros(len(compute))
        speed = np.where(holder._speed > 0, holder._speed, 1.0)[device]
        disk = (weights[self.last] - weights[first_streamed]) / speed
        places = self.asked.places[:, None]
        unread = (weights[self.last] - weights[np.minimum(first_streamed + places, self.last)]) / speed
        unhidden = self.cpu // np.maximum(streamed, 1) - 1 + 2 * self.of.largest_tensor  # layers
        waiting = unhidden * on_cpu / np.maximum(self.cpu, 1) + unread
        busy = np.where(streamed > places, np.maximum(compute, waiting), compute) + run
        return busy.sum(axis=1), disk.sum(axis=1)


def _largest(layer_bytes: Sequence[int]) -> Grid:
    """[a, z]: bytes of the largest of layers [a, z)."""
    n = len(layer_bytes)
    sizes = np.broadcast_to(np.array(layer_bytes, dtype=np.float64), (n, n))
    found = np.zeros((n + 1, n + 1))
    found[:n, 1:] = np.maximum.accumulate(np.triu(sizes), axis=1)
    return found


def spread_many(total: Counted, rooms: Counted) -> Counted:
    """`deal.spread` for many totals at once.  total: (...,).  rooms: (..., places), broadcast against it."""
    n = rooms.shape[-1]
    if n == 1:
        return total[..., None]
    each, more = np.divmod(total, n)
    even = each[..., None] + (np.arange(n) < more[..., None])
    if (even <= rooms).all():
        return even
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
    room = rooms > given
    extra = total - given.sum(axis=-1)
    return np.asarray(given + (room & (np.cumsum(room, axis=-1) <= extra[..., None])))
