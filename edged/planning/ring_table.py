"""What devices' windows cost, whatever their number: looked up, or many at once computed."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from edged.planning.cost import RingCost
from edged.planning.deal import Deal
from edged.planning.plan import Hop
from edged.planning.ring_steps import Window
from edged.planning.shares import Asked, Counted, Grid, Holder, Shares
from edged.planning.streamed import READ_AHEAD

ALL = 10**6  # layers: no model has more

Row = tuple[int, tuple[Window, ...], int]  # device, its windows, and where the closing one begins


class RingTable:
    """Ways of devices to hold windows, in arrays of shape (rows, ways), inf where impossible.

    Row 0 is nobody's.
    """

    def __init__(self, holder: Holder, ring: RingCost) -> None:
        """ring: the ways tried for a device have about as many layers on its GPU as there."""
        self._holder = holder
        self._places = np.array(holder.problem.of.places, dtype=np.int64)
        self._ways = [self._near_ways(device, ring) for device in range(len(holder.names))]
        self._known: dict[Row, tuple[int, Shares, int]] = {}
        self.busy, self.disk, self.stage = np.zeros((1, 1)), np.zeros((1, 1)), np.zeros((1, 1))

    def __getitem__(self, row: Row) -> int:
        return self._known[row][0]

    def deal(self, row: Row, disk_within: float, stage_within: float) -> Deal:
        _, shares, at = self._known[row]
        return shares.deal(at, disk_within, stage_within)

    def look_at(self, rows: Iterable[Row]) -> int:
        """Adds what is not known yet; returns how much that was, in windows of ways."""
        new = [row for row in dict.fromkeys(rows) if row not in self._known]
        if not new:
            return 0
        width = max(len(windows) for _, windows, _ in new)
        nothing = [(0, len(self._places) - 1, len(self._places) - 1)]
        spans = np.array(
            [[*windows, *nothing * (width - len(windows))] for _, windows, _ in new], dtype=np.int64
        )
        counts = np.array([len(self._ways[device]) for device, _, _ in new], dtype=np.int64)
        gpu, closing, places = np.concatenate([self._ways[device] for device, _, _ in new]).T
        tails = {place: i for i, place in enumerate(self._holder.tails)}
        shares = self._holder.shares(
            Asked(
                device=np.array([device for device, _, _ in new], dtype=np.int64),
                first=self._places[spans[:, :, 1]],
                last=self._places[spans[:, :, 2]],
                tail=np.array([tails.get(int(self._places[tail]), 0) for _, _, tail in new], dtype=np.int64),
                row=np.repeat(np.arange(len(new)), counts),
                column=np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts),
                gpu=gpu,
                closing=closing,
                places=places,
            )
        )
        for i, row in enumerate(new):
            self._known[row] = len(self.busy) + i, shares, i
        self.busy = _below(self.busy, shares.busy)
        self.disk = _below(self.disk, shares.disk)
        self.stage = _below(self.stage, shares.stage)
        return int(counts.sum()) * width

    def _near_ways(self, device: int, ring: RingCost) -> Counted:
        """Layers on the GPU, how the closing window is held, places in the buffer."""
        holder, of = self._holder, self._holder.problem.of
        costs, gpus = holder.devices[device], {0}
        if costs.gpu is not None:
            layer = (of.weights.prefix[-1] + of.cache.prefix[-1]) / of.model.n_layers
            room = int(max(0.0, costs.gpu_budget - of.overhead) // layer)
            now = sum(_on_gpu(ring.hops[:-1], holder.names[device]))
            gpus |= {max(0, now + by) for by in (-1, 0, 1)} | {max(0, room - by) for by in (0, 1, 2)} | {ALL}
        ways = [
            (gpu, how, places)
            for gpu in sorted(gpus)
            for how, closing in enumerate(holder.closings if device == 0 else holder.closings[:1])
            for places in (range(READ_AHEAD + 1) if costs.disk > 0 else (0,))
            if costs.mixes or not ((gpu or closing.gpu) and (places or closing.streamed))
        ]
        return np.array(ways, dtype=np.int64)


def _on_gpu(hops: Iterable[Hop], device: str) -> Iterable[int]:
    return (hop.gpu_layers for hop in hops if hop.device == device)


def _below(upper: Grid, lower: Grid) -> Grid:
    """One under the other, filled up with inf."""
    both = np.full((len(upper) + len(lower), max(upper.shape[1], lower.shape[1])), np.inf)
    both[: len(upper), : upper.shape[1]] = upper
    both[len(upper) :, : lower.shape[1]] = lower
    return both
