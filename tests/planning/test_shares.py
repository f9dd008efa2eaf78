"""Many sets of windows at once: the same as one at a time, and never worse than where the search began."""

from __future__ import annotations

import random

import numpy as np
import pytest

from benchmarks.solve_time import random_home
from edged.planning.best import best_ring
from edged.planning.cost import share
from edged.planning.deal import Deal, hops_of_windows, spread
from edged.planning.plan import Objective
from edged.planning.shares import Asked, Holder, spread_many
from edged.planning.uneven import Windows


def test_dealing_out_many_is_dealing_out_each() -> None:
    rng = random.Random(0)
    for places in (1, 2, 3, 5):
        rooms = [[rng.randint(0, 6) for _ in range(places)] for _ in range(400)]
        totals = [rng.randint(0, sum(room)) for room in rooms]
        found = spread_many(np.array(totals), np.array(rooms))
        assert [tuple(one) for one in found] == [
            spread(total, room) for total, room in zip(totals, rooms, strict=True)
        ]


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_costs_are_those_of_the_cost_model(rounds: int) -> None:
    problem = random_home(4, 40, 0.7, False, True)
    holder = Holder(problem, list(problem.devices))
    rng = random.Random(rounds)
    asked, streams = [], 0
    for _ in range(400):
        cuts = sorted(rng.sample(range(40), 2 * rounds))
        device = rng.randrange(4)
        gpu = rng.randint(0, 5) if holder.devices[device].gpu is not None else 0
        asked.append((device, cuts[::2], cuts[1::2], gpu, rng.randint(0, 3)))
    shares = holder.shares(
        Asked(
            device=np.array([one[0] for one in asked]),
            first=np.array([one[1] for one in asked]),
            last=np.array([one[2] for one in asked]),
            tail=np.zeros(len(asked), dtype=np.int64),
            row=np.arange(len(asked)),
            column=np.zeros(len(asked), dtype=np.int64),
            gpu=np.array([one[3] for one in asked]),
            closing=np.zeros(len(asked), dtype=np.int64),
            places=np.array([one[4] for one in asked]),
        )
    )
    compared = 0
    for row, (device, first, last, _, _) in enumerate(asked):
        if device == 0 or not np.isfinite(shares.busy[row, 0]):
            continue  # the head has its closing window besides
        deal: Deal = shares.deal(row, np.inf, np.inf)
        hops = hops_of_windows("x", list(zip(first, last, strict=True)), deal)
        true = share(holder.devices[device], problem.of, hops)
        assert true.fits
        assert (shares.busy[row, 0], shares.disk[row, 0], shares.stage[row, 0]) == pytest.approx(
            (true.busy, true.disk, true.stage)
        )
        compared += 1
        streams += deal.streamed > 0
    assert compared > 50 and streams > 10


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_no_single_cut_of_a_ring_can_be_moved_for_the_better(objective: Objective) -> None:
    for memory in (0.7, 1.5):
        problem = random_home(3, 40, memory, False, True)
        ring = best_ring(problem, objective)
        assert ring is not None and ring.fits
        windows = Windows(problem, objective)
        owners = [hop.device for hop in ring.hops]
        cuts = [*(hop.first for hop in ring.hops), 40]
        for at in range(1, len(cuts) - 2):
            for by in (-1, 1):
                moved = [*cuts[:at], cuts[at] + by, *cuts[at + 1 :]]
                if not moved[at - 1] < moved[at] < moved[at + 1]:
                    continue
                other = windows.ring(owners, moved)
                if other is not None:
                    assert ring.goal(objective) <= other.goal(objective) * (1 + 1e-3)
