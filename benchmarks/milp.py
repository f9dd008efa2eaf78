"""The overlap solver's question as integer programmes for HiGHS: a check of its optimum, and a race.

    python -m benchmarks.milp [--limit SECONDS]

By ways: a 0/1 variable for every way that a device can take n layers in k rounds (`edged.planning.options`),
one of them chosen per device; the sum of layers is the model's, and the token takes no less than the way
round and no less than any disk. It has the same optimum as the dynamic programme where links are alike.

By counts: of each device the layers in RAM, streamed and on the GPU, and whether it is in the ring at all. It
knows one round, and no waiting for the disk within a window, which is not linear: a lower bound.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field

import highspy
import numpy as np
from numpy.typing import NDArray

from benchmarks.solve_time import random_home
from edged.planning import overlap
from edged.planning.cost import Problem
from edged.planning.halda import QuietHighs
from edged.planning.options import options
from edged.planning.plan import Objective

INFINITE = highspy.kHighsInf


@dataclass
class Programme:
    """Columns and rows as HiGHS wants them; minimises the first column, the time."""

    lower: list[float] = field(default_factory=lambda: [0.0])
    upper: list[float] = field(default_factory=lambda: [INFINITE])
    integer: list[bool] = field(default_factory=lambda: [False])
    rows: list[tuple[dict[int, float], float, float]] = field(default_factory=list)

    def column(self, lower: float, upper: float, integer: bool = True) -> int:
        self.lower.append(lower)
        self.upper.append(upper)
        self.integer.append(integer)
        return len(self.lower) - 1

    def row(self, values: dict[int, float], lower: float, upper: float) -> None:
        self.rows.append((values, lower, upper))

    def least(self, seconds: float) -> tuple[float | None, bool]:
        """The least time, None where there is no solution, and whether that was proved in time."""
        lp = highspy.HighsLp()
        n = len(self.lower)
        lp.num_col_, lp.num_row_ = n, len(self.rows)
        lp.col_cost_ = np.eye(1, n).ravel()
        lp.col_lower_, lp.col_upper_ = np.array(self.lower), np.array(self.upper)
        lp.row_lower_ = np.array([low for _, low, _ in self.rows])
        lp.row_upper_ = np.array([high for _, _, high in self.rows])
        kinds = highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger
        lp.integrality_ = [kinds[whole] for whole in self.integer]
        matrix = lp.a_matrix_
        matrix.format_ = highspy.MatrixFormat.kRowwise
        matrix.start_ = np.cumsum([0, *(len(values) for values, _, _ in self.rows)]).astype(np.int32)
        matrix.index_ = np.array([at for values, _, _ in self.rows for at in values], dtype=np.int32)
        matrix.value_ = np.array([one for values, _, _ in self.rows for one in values.values()])
        highs = QuietHighs()
        highs.setOptionValue("threads", 1)
        highs.setOptionValue("time_limit", seconds)
        highs.setOptionValue("mip_rel_gap", 1e-9)
        highs.passModel(lp)
        highs.run()
        status = highs.getModelStatus()
        if status == highspy.HighsModelStatus.kInfeasible:
            return None, True
        found = highs.getInfo().objective_function_value
        return (found if found < INFINITE else None), status == highspy.HighsModelStatus.kOptimal


def by_ways(
    problem: Problem, objective: Objective, rounds: int, seconds: float = 60.0
) -> tuple[float | None, bool]:
    """The least goal (seconds) of rings of so many rounds over two devices or more; whether it is proved."""
    programme = Programme()
    closing = problem.of.places[-1] - problem.of.places[-2]
    layers: dict[int, float] = {}
    around: dict[int, float] = {0: -1.0}
    others: dict[int, float] = {}
    other = next(name for name in problem.devices if name != problem.head)
    for name, costs in problem.devices.items():
        is_head = name == problem.head
        found = options(costs, problem.of, rounds, closing if is_head else 0)
        if found is None:
            if is_head:
                return None, True
            continue
        # links are alike: what a hop takes depends on who receives
        hop = rounds * problem.hop_s(other if is_head else problem.head, name)
        own: dict[int, float] = {}
        disk: dict[int, float] = {0: -1.0}
        for n, way in _useful(found.busy, found.disk, found.stage, objective):
            at = programme.column(0, 1)
            own[at], layers[at] = 1.0, n
            around[at] = float(found.busy[n, way]) + hop
            disk[at] = float(found.disk[n, way] if objective == "latency" else found.stage[n, way])
        programme.row(own, 1 if is_head else 0, 1)
        programme.row(disk, -INFINITE, 0)
        if not is_head:
            others |= own
    programme.row(layers, problem.model.n_layers - closing, problem.model.n_layers - closing)
    programme.row(others, 1, INFINITE)
    if objective == "latency":
        programme.row(around, -INFINITE, 0)
    else:
        programme.row({0: 1.0}, rounds * problem.slowest_link([(problem.head, other)], 1), INFINITE)
    return programme.least(seconds)


def _useful(
    busy: NDArray[np.float64], disk: NDArray[np.float64], stage: NDArray[np.float64], objective: Objective
) -> list[tuple[int, int]]:
    """(layers, way): those that no other of as many layers is better than in all that counts."""
    kept = []
    for n in range(len(busy)):
        some = np.flatnonzero(np.isfinite(busy[n]))
        if objective == "throughput":
            kept += [(n, int(some[stage[n, some].argmin()]))] if some.size else []
            continue
        least = np.inf
        for way in some[np.lexsort((disk[n, some], busy[n, some]))]:
            if disk[n, way] < least:
                kept.append((n, int(way)))
                least = disk[n, way]
    return kept


def by_counts(problem: Problem, seconds: float = 60.0) -> tuple[float | None, bool]:
    """A lower bound of the token's time in rings of one round, and whether it is proved."""
    programme, of = Programme(), problem.of
    n = problem.model.n_layers - 1  # but for the closing window
    size, cache = of.weights.of(0, 1), of.cache.of(0, 1)
    around: dict[int, float] = {0: -1.0}
    layers: dict[int, float] = {}
    other = next(name for name in problem.devices if name != problem.head)
    for name, costs in problem.devices.items():
        is_head, gpu = name == problem.head, costs.gpu
        inside = programme.column(1 if is_head else 0, 1)
        kept, streamed = programme.column(0, n), programme.column(0, n if costs.disk > 0 else 0)
        streams = programme.column(0, 1)
        on_gpu = programme.column(0, n if gpu is not None else 0)
        starts, closing_gpu = programme.column(0, 1), programme.column(0, 1 if is_head and gpu else 0)
        for one in (kept, streamed, on_gpu):
            layers[one] = 1.0
            programme.row({one: 1.0, inside: -float(n)}, -INFINITE, 0)
        programme.row({kept: 1.0, streamed: 1.0, on_gpu: 1.0, inside: -1.0}, 0, INFINITE)
        programme.row({streamed: 1.0, streams: -float(n)}, -INFINITE, 0)
        programme.row({on_gpu: 1.0, starts: -float(n)}, -INFINITE, 0)
        cpu_s = costs.cpu.decode.of(0, 1)
        around |= {kept: cpu_s, streamed: cpu_s}
        around[inside] = costs.cpu.run + problem.hop_s(other if is_head else problem.head, name)
        ram = {kept: size + cache, streamed: cache, streams: size, inside: float(of.overhead)}
        vram = {on_gpu: size + cache, starts: float(of.overhead)}
        if gpu is not None:
            around |= {on_gpu: gpu.decode.of(0, 1), starts: gpu.run}
        if is_head:
            closes = cpu_s + costs.cpu.run + costs.cpu.output
            around[inside] += closes
            output = float(problem.model.output_bytes)
            ram[inside] += size + cache + of.last_overhead + output
            if gpu is not None:
                around[closing_gpu] = gpu.decode.of(0, 1) + gpu.run + gpu.output + costs.cpu.run - closes
                ram[closing_gpu] = -(size + cache + output)
                vram[closing_gpu] = size + cache + of.overhead + output
        if costs.gpu_shares:
            ram |= {at: ram.get(at, 0.0) + more for at, more in vram.items()}
        programme.row(ram, -INFINITE, costs.profile.memory_budget)
        programme.row(vram, -INFINITE, costs.gpu_budget)
        if costs.disk > 0:
            programme.row({streamed: size / costs.disk, 0: -1.0}, -INFINITE, 0)
    programme.row(layers, n, n)
    programme.row(around, -INFINITE, 0)
    return programme.least(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--limit", type=float, default=60.0, metavar="SECONDS", help="for one programme (60)")
    limit = parser.parse_args().limit
    print(f"{'devices':>8}{'layers':>7}{'memory':>8}{'dynamic':>10}{'by ways':>12}{'by counts':>12}")
    for devices, layers in ((4, 80), (32, 126), (128, 126)):
        for memory in (0.7, 1.5):
            problem = random_home(devices, layers, memory, True, False)
            started = time.perf_counter()
            ring = overlap.best_ring(problem, "latency", 1)
            cells = [f"{time.perf_counter() - started:.3f} s"]
            for ways in (True, False):
                started = time.perf_counter()
                found, proved = by_ways(problem, "latency", 1, limit) if ways else by_counts(problem, limit)
                cells.append(f"{time.perf_counter() - started:.2f} s{'' if proved else ' *'}")
                if proved and ring is not None:
                    assert found is not None and found <= ring.token * (1 + 1e-6), (found, ring.token)
            print(f"{devices:>8}{layers:>7}{memory:>8}{cells[0]:>10}{cells[1]:>12}{cells[2]:>12}", flush=True)
    print("* the best was not proved within the limit")


if __name__ == "__main__":
    main()
