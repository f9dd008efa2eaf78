"""The cluster and models of prima.cpp's paper (arXiv 2504.08791), planned by every solver.

    python -m benchmarks.paper_cluster [--json FILE] [MODEL ...]

All plans are judged by edged's cost model, beside what the paper measured.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from edged.errors import PlanError
from edged.planning.cost import RingCost
from edged.planning.model_profile import ModelProfile
from edged.planning.plan import ContextOptions
from edged.planning.profile import ClusterProfile
from edged.planning.profile_files import find, read_cluster, read_model
from edged.planning.runnable import solve_runnable
from edged.planning.solve import SOLVERS, Wishes, solve

# TPOT in ms, by the paper: llama.cpp on one device, prima.cpp, without Halda.
PAPER = {
    "llama-3-8b": (15, 15, 78),
    "llama-3-14b": (20, 20, 131),
    "llama-1-30b": (202, 72, 258),
    "llama-3-45b": (328, 233, 409),
    "llama-3-60b": (7965, 468, 7053),
    "llama-1-65b": (8807, 569, 12253),
    "llama-3-70b": (10120, 674, 20848),
}
RUNS = "runnable"
CONTEXT = ContextOptions(n_ctx=1024, n_seq_max=1, n_ubatch=128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(PAPER), metavar="MODEL")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    path = find("clusters", "paper")
    assert path is not None
    cluster = read_cluster(path)
    rows = []
    print(
        f"{'ms a token':<14}"
        + "".join(f"{name:>11}" for name in (*SOLVERS, RUNS, *"llama.cpp", "prima.cpp", "no Halda"))
    )
    for name in options.models:
        file = find("models", name)
        if file is None:
            raise SystemExit(f"there is no model {name}")
        model = read_model(file)
        row: dict[str, object] = {"model": name}
        for solver in SOLVERS:
            started = time.perf_counter()
            try:
                ring = solve(cluster, model, Wishes(CONTEXT, solver=solver))
            except PlanError as error:
                row[solver] = {"problem": error.message}
                continue
            row[solver] = {**_figures(ring), "solved_in_s": time.perf_counter() - started}
        row[RUNS] = _as_it_runs(cluster, model)
        rows.append(row)
        ours = "".join(f"{_cell(row[one]):>11}" for one in (*SOLVERS, RUNS))
        print(f"{name:<14}{ours}{_paper(name)}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


def _as_it_runs(cluster: ClusterProfile, model: ModelProfile) -> dict[str, object]:
    """`overlap` within what edged can do yet: no device streams layers beside others on its GPU."""
    started = time.perf_counter()
    try:
        ring = solve_runnable(cluster, model, Wishes(CONTEXT))
    except PlanError as error:
        return {"problem": error.message}
    return {**_figures(ring), "solved_in_s": time.perf_counter() - started}


def _figures(ring: RingCost) -> dict[str, object]:
    return {
        "tpot_ms": 1e3 * ring.token,
        "ttft_ms": 1e3 * ring.first_token,
        "hops": [
            (hop.device, hop.first, hop.last, hop.gpu_layers, hop.resident, hop.streamed) for hop in ring.hops
        ],
    }


def _cell(found: object) -> str:
    assert isinstance(found, dict)
    return f"{found['tpot_ms']:.0f}" if "tpot_ms" in found else "-"


def _paper(name: str) -> str:
    return "".join(f"{figure:>11}" for figure in PAPER.get(name, ()))


if __name__ == "__main__":
    main()
