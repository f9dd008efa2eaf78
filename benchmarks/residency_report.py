"""Table and plots of what `benchmarks.residency` has measured.

python -m benchmarks.residency_report residency.jsonl --plots plots
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.measurement import Case, Measurement, latest, load
from benchmarks.svg_plot import COLOURS, Panel, Series, line_plot

HEADER = (
    "model", "system", "nodes", "fits %", "MiB each", "link", "disk", "rounds", "s/token",
    "against llama.cpp", "MB/token", "least", "of least", "of least, one in use", "peak of limit",
    "locked MiB", "faults/token", "plan",
)  # fmt: skip

SHARE = "percent of the model that fits into all nodes together"
PLOTS: dict[str, tuple[str, Callable[[Measurement], float]]] = {
    "tpot": ("seconds per token", lambda m: m.tpot_s),
    "bytes": ("MB read per token", lambda m: m.read_per_token / 1e6),
    "memory": ("MiB held at most, all nodes", lambda m: sum(m.node_peak) / 2**20),
    "faults": ("major page faults per token", lambda m: m.faults_per_token),
}


def table(measurements: Sequence[Measurement]) -> str:
    """Markdown, one line per measurement."""
    rows = [HEADER, ("---",) * len(HEADER)]
    rows += [_row(each, _baseline(each, measurements)) for each in measurements]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _baseline(measurement: Measurement, among: Iterable[Measurement]) -> Measurement | None:
    """llama.cpp on one such node."""
    case = measurement.case
    same = [
        each
        for each in among
        if each.case.system == "llama.cpp"
        and (each.case.model, each.case.limit, each.case.disk_rate, each.case.threads)
        == (case.model, case.limit, case.disk_rate, case.threads)
        and each.token_s
    ]
    return same[-1] if same else None


def _row(each: Measurement, baseline: Measurement | None) -> tuple[str, ...]:
    case = each.case
    what = (
        case.model,
        label(case),
        str(case.nodes),
        str(case.fits),
        str(case.limit // 2**20),
        case.link + (f" +{case.delay_ms:g} ms" if case.delay_ms else ""),
        case.disk_rate,
        "" if case.system == "llama.cpp" else str(case.rounds or "plan"),
    )
    if each.problem:
        return (*what, each.problem.replace("|", "/"), *[""] * (len(HEADER) - len(what) - 1))
    faster = "" if baseline is None or baseline is each else f"{baseline.tpot_s / each.tpot_s:.2f} x"
    return (
        *what,
        f"{each.tpot_s:.3f} ({min(each.token_s):.3f} to {max(each.token_s):.3f})",
        faster,
        f"{each.read_per_token / 1e6:.0f}",
        f"{each.least_per_token / 1e6:.0f}",
        f"{each.worst_excess:.2f}" if each.worst_excess else "",
        f"{each.worst_excess_in_use:.2f}" if each.worst_excess and each.largest_tensor else "",
        f"{max(each.node_peak, default=0) / case.limit:.3f}",
        f"{sum(each.node_locked) / 2**20:.0f}",
        f"{each.faults_per_token:.0f}",
        each.plan,
    )


def label(case: Case) -> str:
    if case.system == "llama.cpp":
        return "llama.cpp"
    return "edged" if case.residency else "edged, residency off"


def plots(measurements: Sequence[Measurement], folder: Path) -> list[Path]:
    """One SVG per model, disk and quantity over the share that fits; a panel per link and rounds."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    ran = [each for each in latest(measurements) if not each.problem]
    for model, disk in sorted({(each.case.model, each.case.disk_rate) for each in ran}):
        own = [each for each in ran if (each.case.model, each.case.disk_rate) == (model, disk)]
        about = model + (f", disk {disk}B/s for each node" if disk else "")
        for name, (title, value) in PLOTS.items():
            path = folder / ("-".join(filter(None, (model, disk, name))) + ".svg")
            panels = [
                Panel(title_of(link, rounds), _series(own, link, rounds, value))
                for link, rounds in _panels(own)
            ]
            path.write_text(line_plot(f"{about}: {title}", SHARE, panels))
            written.append(path)
    return written


def _panels(measurements: Sequence[Measurement]) -> list[tuple[str, int | None]]:
    """Links and rounds of rings of several devices; one panel where there are none."""
    rings = {(each.case.link, each.case.rounds) for each in measurements if each.case.nodes > 1}
    return sorted(rings, key=lambda one: (one[0], one[1] or 0)) or [("", None)]


def title_of(link: str, rounds: int | None) -> str:
    over = f"{link}, " if link else ""
    return over + (f"{rounds} round{'s' * (rounds > 1)}" if rounds else "rounds as planned")


def _series(
    measurements: Sequence[Measurement], link: str, rounds: int | None, value: Callable[[Measurement], float]
) -> list[Series]:
    """Rings of that link and rounds; devices alone, which have neither, are in every panel."""
    lines: dict[tuple[int, bool], dict[float, float]] = {}
    for each in measurements:
        case = each.case
        if case.nodes == 1 or (case.link, case.rounds) == (link, rounds):
            nodes = 0 if case.system == "llama.cpp" else case.nodes
            dashed = nodes > 0 and not case.residency
            lines.setdefault((nodes, dashed), {})[case.fits] = value(each)
    return [
        Series(_line_name(nodes, dashed), sorted(points.items()), COLOURS[nodes % len(COLOURS)], dashed)
        for (nodes, dashed), points in sorted(lines.items())
    ]


def _line_name(nodes: int, dashed: bool) -> str:
    if nodes == 0:
        return "llama.cpp, 1 node"
    return f"edged, {nodes} node{'s' * (nodes > 1)}" + (", residency off" if dashed else "")


def main() -> None:
    parser = argparse.ArgumentParser(description="Table and plots of residency measurements.")
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write SVG files there")
    options = parser.parse_args()
    measurements = [each for path in options.results for each in load(path)]
    print(table(latest(measurements)))
    if options.plots is not None:
        for path in plots(measurements, options.plots):
            print(path)


if __name__ == "__main__":
    main()
