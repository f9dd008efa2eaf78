"""Ways worth trying for windows that differ a little from those of a known ring."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edged.planning.deal import Deal
from edged.planning.device_costs import DeviceCosts
from edged.planning.shares import Asked, Counted, Holder
from edged.planning.streamed import READ_AHEAD

ALL = 10**6  # layers: no model has more


def ask(holder: Holder, device: Counted, first: Counted, last: Counted, deals: Sequence[Deal]) -> Asked:
    """Rows for these windows, with layers on the GPU and places in the buffer near those of `deals`."""
    ways = [
        _near_ways(one, deal, len(holder.closings) if i == 0 else 1)
        for i, (one, deal) in enumerate(zip(holder.devices, deals, strict=True))
    ]
    counts = np.array([len(own) for own in ways])
    starts = np.cumsum(counts) - counts
    every = np.array([way for own in ways for way in own], dtype=np.int64)
    row = np.repeat(np.arange(len(device)), counts[device])
    column = np.arange(len(row)) - np.repeat(np.cumsum(counts[device]) - counts[device], counts[device])
    gpu, closing, places = every[starts[device[row]] + column].T
    return Asked(device, first, last, np.zeros_like(device), row, column, gpu, closing, places)


def _near_ways(device: DeviceCosts, deal: Deal, closings: int) -> list[tuple[int, int, int]]:
    """(layers on the GPU, which of so many closing windows, places in the buffer)."""
    gpus = {0}
    if device.gpu is not None:  # as many as before, all of them, or none
        gpus |= {max(0, deal.gpu + step) for step in (-1, 0, 1)} | {ALL}
    places = {0}
    if device.disk > 0:
        places |= set(range(1, READ_AHEAD + 1))
    return [(gpu, how, place) for gpu in sorted(gpus) for how in range(closings) for place in sorted(places)]
