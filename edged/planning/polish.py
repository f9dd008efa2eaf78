"""A ring made better step by step, by the true cost model: windows need not come in rounds, nor be alike.

Every step that `edged.planning.ring_steps` knows is judged, many at once by arrays, and the best is taken,
until none helps or enough has been looked at. First layers go from window to window; when that does not help
any more, windows come, go or change hands. What is found is as good as its neighbours, not the best there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from edged.planning.cost import RingCost, ring_cost
from edged.planning.deal import hops_of_windows
from edged.planning.plan import Hop, Objective
from edged.planning.ring_steps import Step, Window, changes, shifts
from edged.planning.ring_table import RingTable, Row
from edged.planning.shares import Counted, Grid, Holder

MOST_CLOSING = 8  # places' worth of layers in the closing window
MOST_LIMITS = 12  # on the disks' time, the nearest below what the ring takes
MOST_WORK = 150_000  # in windows of ways that are computed: some hundredths of a second
MOST_THOROUGHLY = 2_000_000  # the same, for the best of several rings
MANY = 8  # devices; with more the rest of solving takes its time too, and a fourth of the work must do
STEP = 20  # the same: what a step takes besides
MOST_PLACES = 400  # for new windows that are looked at together, times devices
LEAST_GAIN = 1e-6  # of the whole


def polished(
    ring: RingCost, objective: Objective, keeps_rounds: bool = False, thoroughly: bool = False
) -> RingCost:
    """`ring` or a better one. keeps_rounds: layers only move from window to window."""
    problem = ring.problem
    if len(ring.hops) < 2 or problem.of.fillers:
        return ring
    search = _Search(ring, objective, MOST_THOROUGHLY if thoroughly else MOST_WORK)
    search.run(keeps_rounds)
    better = search.found()
    return better if better.fits and better.goal(objective) < ring.goal(objective) else ring


class _Search:
    def __init__(self, ring: RingCost, objective: Objective, most: int) -> None:
        self._problem, self._latency = ring.problem, objective == "latency"
        problem, places = self._problem, self._problem.of.places
        self._names = [*ring.shares, *(name for name in problem.devices if name not in ring.shares)]
        self._holder = Holder(problem, self._names, MOST_CLOSING)
        self._table = RingTable(self._holder, ring)
        unit = {place: i for i, place in enumerate(places)}
        self._ring: list[Window] = [
            (self._names.index(hop.device), unit[hop.first], unit[hop.last]) for hop in ring.hops
        ]
        self._tails = {unit[place] for place in self._holder.tails}
        self._left = most if len(self._names) <= MANY else most // 4
        self._goal, self._limit = np.inf, np.inf
        self._hop: dict[tuple[int, int], float] = {}

    def run(self, keeps_rounds: bool) -> None:
        self._goal, self._limit = self._now()
        moving, tried, turn = True, 0, 0
        while self._left > 0:
            every = 1 + len(self._ring) * len(self._names) // MOST_PLACES
            steps = (
                shifts(self._ring) if moving else changes(self._ring, len(self._names), every, turn % every)
            )
            allowed = [step for step in steps if self._allowed(step)]
            before = list(self._ring)
            if allowed:
                step = allowed[int(self._after(allowed).argmin())]
                self._ring[step.at : step.until] = step.windows
                goal, limit = self._now()
                if goal < self._goal * (1 - LEAST_GAIN):
                    self._goal, self._limit, moving, tried = goal, limit, True, 0
                    continue
                self._ring = before
            if keeps_rounds or tried == every:
                break
            moving, tried, turn = False, tried + 1, turn + 1

    def _allowed(self, step: Step) -> bool:
        """The ring still begins and ends at its head, and the closing window is not too large."""
        if step.at == 0 and step.windows[0][0] != 0:
            return False
        device, first, _ = step.windows[-1]
        return step.until < len(self._ring) or (device == 0 and first in self._tails)

    def _own(self) -> dict[int, set[Window]]:
        own: dict[int, set[Window]] = {}
        for window in self._ring:
            own.setdefault(window[0], set()).add(window)
        return own

    def _rows(self) -> dict[int, Row]:
        """Of the devices in the ring."""
        rows = {device: _row(device, own) for device, own in self._own().items()}
        self._left -= self._table.look_at(rows.values())
        return rows

    def _now(self) -> tuple[float, float]:
        """What the ring takes, and the disks' time within which it does."""
        rows = [self._table[row] for row in self._rows().values()]
        if not self._latency:
            return max(float(self._table.stage[rows].min(axis=1).max()), *self._load().values()), np.inf
        way = self._way(self._ring)
        disk, busy = self._table.disk[rows], self._table.busy[rows]
        limits = np.unique(disk[np.isfinite(disk)])
        goals = [
            max(float(limit), float(np.where(disk <= limit, busy, np.inf).min(axis=1).sum()) + way)
            for limit in limits
        ]
        at = int(np.argmin([*goals, np.inf]))
        return (goals[at], float(limits[at])) if goals else (np.inf, np.inf)

    def _after(self, steps: Sequence[Step]) -> Grid:
        """What the ring would take after each step."""
        now, own, old, new = self._rows(), self._own(), [], []
        for step in steps:
            removed = self._ring[step.at : step.until]
            changed = {window[0] for window in (*removed, *step.windows)}
            old.append([now[device] for device in changed if device in now])
            new.append(
                [
                    _row(device, windows)
                    for device in changed
                    if (windows := own.get(device, set()).difference(removed) | _of(device, step.windows))
                ]
            )
        self._left -= self._table.look_at(row for rows in new for row in rows) + STEP * len(steps)
        rows = np.array([self._table[row] for row in now.values()])
        judge = self._after_latency if self._latency else self._after_stage
        return judge(steps, rows, self._indices(old), self._indices(new))

    def _indices(self, rows: Sequence[Sequence[Row]]) -> Counted:
        """As an array, filled up with 0."""
        found = np.zeros((len(rows), max(len(own) for own in rows)), dtype=np.int64)
        for i, own in enumerate(rows):
            found[i, : len(own)] = [self._table[row] for row in own]
        return found

    def _after_latency(self, steps: Sequence[Step], now: Counted, old: Counted, new: Counted) -> Grid:
        used, at = np.unique(np.concatenate([[0], now, new.ravel()]), return_inverse=True)
        now_at, new_at = at[1 : 1 + len(now)], at[1 + len(now) :].reshape(new.shape)
        old_at = np.searchsorted(used, old)
        disk, busy = self._table.disk[used], self._table.busy[used]
        hops = self._way(self._ring) + np.array([self._more_way(step) for step in steps])
        best = np.full(len(steps), np.inf)
        for limit in np.unique(disk[disk < self._goal])[-MOST_LIMITS:]:
            least = np.where(disk <= limit, busy, np.inf).min(axis=1)
            bad = np.isinf(least)
            least[bad] = 0.0
            spoilt = bad[now_at].sum() - bad[old_at].sum(axis=1) + bad[new_at].sum(axis=1)
            around = least[now_at].sum() - least[old_at].sum(axis=1) + least[new_at].sum(axis=1) + hops
            best = np.minimum(best, np.where(spoilt > 0, np.inf, np.maximum(limit, around)))
        return best

    def _after_stage(self, steps: Sequence[Step], now: Counted, old: Counted, new: Counted) -> Grid:
        least = self._table.stage.min(axis=1)
        rest = np.zeros(len(steps))  # the slowest of those that stay as they are
        for row in sorted(now, key=lambda row: least[row]):
            rest = np.where((old == row).any(axis=1), rest, least[row])
        load = self._load()
        links = np.array([self._slowest_link(load, step) for step in steps])
        return np.asarray(np.maximum(np.maximum(rest, least[new].max(axis=1)), links))

    def _hop_s(self, a: int, b: int) -> float:
        if (a, b) not in self._hop:
            self._hop[a, b] = self._problem.hop_s(self._names[a], self._names[b])
        return self._hop[a, b]

    def _way(self, ring: Sequence[Window]) -> float:
        """Seconds of the hops."""
        return sum(self._hop_s(a[0], b[0]) for a, b in pairwise(ring))

    def _around(self, step: Step) -> tuple[list[Window], list[Window]]:
        """The windows that a step replaces and those it brings, each with the neighbours."""
        before, behind = self._ring[max(0, step.at - 1) : step.at], self._ring[step.until : step.until + 1]
        replaced = self._ring[step.at : step.until]
        return [*before, *replaced, *behind], [*before, *step.windows, *behind]

    def _more_way(self, step: Step) -> float:
        """Seconds of hops that a step adds."""
        if len(step.windows) == step.until - step.at > 1:
            return 0.0  # the same devices
        before, after = self._around(step)
        return self._way(after) - self._way(before)

    def _load(self) -> dict[tuple[int, int], float]:
        """Of the links: seconds per token of many streams."""
        load: dict[tuple[int, int], float] = {}
        for (a, _, _), (b, _, _) in pairwise(self._ring):
            load[a, b] = load.get((a, b), 0.0) + self._frame_s(a, b)
        return load

    def _frame_s(self, a: int, b: int) -> float:
        return self._problem.slowest_link([(self._names[a], self._names[b])], 1)

    def _slowest_link(self, load: dict[tuple[int, int], float], step: Step) -> float:
        """At most: what a step takes from a link does not count."""
        busiest = max(load.values())
        if len(step.windows) == step.until - step.at > 1:
            return busiest
        after = {(a[0], b[0]) for a, b in pairwise(self._around(step)[1])}
        return max(busiest, *(load.get(ends, 0.0) + self._frame_s(*ends) for ends in after))

    def found(self) -> RingCost:
        """The ring as it is, with the best way for each device."""
        stage = np.inf if self._latency else self._goal * (1 + 1e-12)
        places = self._problem.of.places
        hops: list[Hop] = []
        closing: list[Hop] = []
        for device, row in self._rows().items():
            deal = self._table.deal(row, self._limit, stage)
            name = self._names[device]
            windows = [(places[a], places[z]) for _, a, z in row[1]]
            hops += hops_of_windows(name, windows, deal)
            if device == 0:
                closing = [deal.closing.hop(name, places[row[2]], places[-1])]
        return ring_cost(self._problem, [*sorted(hops, key=_first), *closing])


def _first(hop: Hop) -> int:
    return hop.first


def _of(device: int, windows: Iterable[Window]) -> set[Window]:
    return {window for window in windows if window[0] == device}


def _row(device: int, windows: Iterable[Window]) -> Row:
    """Of the head, its last window is the closing one."""
    ordered = sorted(windows)
    if device != 0:
        return device, tuple(ordered), -1
    return device, tuple(ordered[:-1]), ordered[-1][1]
