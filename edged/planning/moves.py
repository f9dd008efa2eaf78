"""Single cuts of a ring moved while it gets better, all moves looked at together.

A cut moves by a place or two, or several in a row by one: then a layer goes from one window to a later one,
and those between them shift, from a device to another or to its own next window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from edged.planning.deal import Deal
from edged.planning.nearby import ask
from edged.planning.plan import Objective
from edged.planning.shares import Counted, Grid, Holder, Shares

MOST_MOVES = 40
MOST_SHIFTED = 8  # cuts that move together
MOST_LIMITS = 24  # on the disks' time, the nearest below what the ring takes
MOST_LOOKED_AT = 400_000  # moves times devices times limits
# what may happen to a window: units that its beginning and its end move by
CHANGES = ((0, -2), (0, -1), (0, 1), (0, 2), (-2, 0), (-1, 0), (1, 0), (2, 0), (-1, -1), (1, 1))


def moved(
    holder: Holder, ends: Counted, deals: Sequence[Deal], objective: Objective
) -> tuple[Counted, tuple[Deal, ...]]:
    """Where the windows end after the moves, and what each device does.

    ends: in layers, 0 before them: (rounds * devices + 1,).
    """
    return _Moving(holder, ends, deals, objective).best()


class _Moving:
    def __init__(self, holder: Holder, ends: Counted, deals: Sequence[Deal], objective: Objective) -> None:
        self._holder, self._deals = holder, deals
        self._latency = objective == "latency"
        self._places = np.array(holder.problem.of.places[:-1], dtype=np.int64)
        self._cuts = np.searchsorted(self._places, ends)  # of units
        self._devices = len(holder.names)
        self._rounds = (len(ends) - 1) // self._devices
        self._per_device = 1 + self._rounds * len(CHANGES) + 2 * (self._rounds - 1)
        self._steps = list(self._all_steps())
        self._rows = np.array([self._rows_of(*step) for step in self._steps], dtype=np.int64)
        problem, n = holder.problem, self._devices
        around = [(holder.names[i], holder.names[(i + 1) % n]) for i in range(n)]
        self._way = self._rounds * sum(problem.hop_s(*ends) for ends in around)
        self._links = self._rounds * max(problem.slowest_link([ends], 1) for ends in around)

    def _all_steps(self) -> Iterator[tuple[int, int, int]]:
        """(first cut, how many, by how much)."""
        cuts = self._devices * self._rounds - 1
        for length in range(1, min(self._devices, MOST_SHIFTED) + 1):
            for first in range(1, cuts - length + 2):
                for by in (-2, -1, 1, 2) if length == 1 else (-1, 1):
                    yield first, length, by

    def _rows_of(self, first: int, length: int, by: int) -> list[int]:
        """Of each device, its row in the table after the step."""
        rows = [device * self._per_device for device in range(self._devices)]
        giver = (first - 1) % self._devices
        if length == self._devices:  # it takes at its next window what it gives at this one
            rows[giver] += 1 + self._rounds * len(CHANGES) + 2 * ((first - 1) // self._devices) + (by > 0)
        for window in range(first - 1, first + length):
            if length == self._devices and window % self._devices == giver:
                continue
            change = (by if window >= first else 0, by if window < first + length - 1 else 0)
            turn, device = divmod(window, self._devices)
            rows[device] += 1 + turn * len(CHANGES) + CHANGES.index(change)
        return rows

    def best(self) -> tuple[Counted, tuple[Deal, ...]]:
        everyone = np.arange(self._devices)
        shares = self._table(everyone)
        goal, limit = self._now(shares)
        for _ in range(MOST_MOVES if len(self._steps) else 0):
            after = self._after(shares, goal)
            at = int(after.argmin())
            if not after[at] < goal * (1 - 1e-9):
                break
            first, length, by = self._steps[at]
            self._cuts[first : first + length] += by
            changed = np.flatnonzero(self._rows[at] != everyone * self._per_device)
            again = self._table(changed)
            rows = (changed[:, None] * self._per_device + np.arange(self._per_device)).ravel()
            shares.replace(rows, again)
            goal, limit = self._now(shares)
        stage = np.inf if self._latency else goal * (1 + 1e-12)
        deals = tuple(shares.deal(int(device) * self._per_device, limit, stage) for device in everyone)
        return self._places[self._cuts], deals

    def _table(self, devices: Counted) -> Shares:
        """What these devices' windows cost as they are, and after every change of one of them."""
        first, last = self._cuts[:-1].reshape(-1, self._devices), self._cuts[1:].reshape(-1, self._devices)
        first, last = first.T[devices], last.T[devices]  # (devices, rounds)
        changes = np.zeros((self._per_device, 2, self._rounds), dtype=np.int64)
        for turn in range(self._rounds):
            for i, change in enumerate(CHANGES):
                changes[1 + turn * len(CHANGES) + i, :, turn] = change
        for turn in range(self._rounds - 1):
            for i, by in enumerate((-1, 1)):
                at = 1 + self._rounds * len(CHANGES) + 2 * turn + i
                changes[at, 1, turn] = changes[at, 0, turn + 1] = by
        begin = (first[:, None, :] + changes[None, :, 0]).reshape(-1, self._rounds)
        end = (last[:, None, :] + changes[None, :, 1]).reshape(-1, self._rounds)
        good = np.asarray((begin >= 0) & (end < len(self._places)) & (begin < end)).all(axis=1)
        good = np.atleast_1d(good)
        begin = np.where(good[:, None], begin, np.repeat(first, self._per_device, axis=0))
        end = np.where(good[:, None], end, np.repeat(last, self._per_device, axis=0))
        device = np.repeat(devices, self._per_device)
        asked = ask(self._holder, device, self._places[begin], self._places[end], self._deals)
        shares = self._holder.shares(asked)
        for grid in (shares.busy, shares.disk, shares.stage):
            grid[~good] = np.inf
        return shares

    def _now(self, shares: Shares) -> tuple[float, float]:
        """What the ring takes, and the disks' time within which it does."""
        own = np.arange(self._devices) * self._per_device
        if not self._latency:
            return max(float(shares.stage[own].min(axis=1).max()), self._links), np.inf
        limits = np.unique(shares.disk[own])
        limits = limits[np.isfinite(limits)]
        goals = [max(float(limit), float(_within(shares, limit)[own].sum()) + self._way) for limit in limits]
        at = int(np.argmin(goals))
        return goals[at], float(limits[at])

    def _after(self, shares: Shares, goal: float) -> Grid:
        """What the ring takes after each step."""
        if not self._latency:
            return np.asarray(np.maximum(shares.stage.min(axis=1)[self._rows].max(axis=1), self._links))
        limits = np.unique(shares.disk[shares.disk < goal])
        most = max(4, min(MOST_LIMITS, MOST_LOOKED_AT // self._rows.size))
        busy = np.array([_within(shares, limit) for limit in limits[-most:]])
        around = busy[:, self._rows].sum(axis=-1) + self._way  # (limits, steps)
        return np.asarray(np.maximum(limits[-most:, None], around).min(axis=0))


def _within(shares: Shares, limit: float) -> Grid:
    return np.asarray(np.where(shares.disk <= limit, shares.busy, np.inf).min(axis=1))
