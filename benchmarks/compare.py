"""Comparing two ways of doing a thing: alternating in one run, so that both meet the same machine.

A ratio is taken inside each round, from two measurements a moment apart, and the median of those ratios is
what is reported, with the least and the greatest. A figure of one machine says little; its ratios say more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Comparison:
    """`subject` against `baseline`, both measured once in every round in `unit` (less is better)."""

    name: str
    unit: str
    subject: str
    baseline: str
    subject_values: tuple[float, ...]
    baseline_values: tuple[float, ...]
    aim: str = ""

    @property
    def ratios(self) -> tuple[float, ...]:
        """Subject over baseline, per round."""
        return tuple(s / b for s, b in zip(self.subject_values, self.baseline_values, strict=True))

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    def row(self) -> tuple[str, ...]:
        return (
            self.name,
            f"{self.subject} {_spread(self.subject_values)} {self.unit}",
            f"{self.baseline} {_spread(self.baseline_values)} {self.unit}",
            _spread(self.ratios, 3),
            self.aim,
        )


@dataclass
class Report:
    """What one benchmark prints: a table for people, the same as JSON for programs."""

    title: str
    settings: dict[str, object] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        header = ("measure", "subject", "baseline", "ratio (median, least to greatest)", "aim")
        rows = [comparison.row() for comparison in self.comparisons]
        lines = [f"## {self.title}", "", _line(header), _line(["---"] * len(header)), *map(_line, rows), ""]
        lines += [", ".join(f"{key} {value}" for key, value in self.settings.items())]
        return "\n".join(lines + self.notes)

    def json(self) -> str:
        rows = [asdict(each) | {"ratios": each.ratios, "ratio": each.ratio} for each in self.comparisons]
        body = {"title": self.title, "settings": self.settings, "comparisons": rows, "notes": self.notes}
        return json.dumps(body, indent=2)


def alternate(
    subject: Callable[[], float], baseline: Callable[[], float], rounds: int, progress: str = ""
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measures both once per round; who goes first changes every round. One warm-up each comes before."""
    subject(), baseline()
    values: dict[Callable[[], float], list[float]] = {subject: [], baseline: []}
    for number in range(rounds):
        for measure in (subject, baseline) if number % 2 == 0 else (baseline, subject):
            values[measure].append(measure())
        last = f"{values[subject][-1]:.3g} against {values[baseline][-1]:.3g}"
        print(f"{progress} round {number + 1} of {rounds}: {last}", file=sys.stderr)
    return tuple(values[subject]), tuple(values[baseline])


def arguments(description: str, rounds: int) -> argparse.ArgumentParser:
    """The flags every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"how often each is measured ({rounds})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here, - for stdout")
    return parser


def publish(report: Report, to: Path | None) -> None:
    """Prints the table; `to` gets the JSON (with `-`, standard output gets JSON instead of the table)."""
    report.settings.update(machine())
    if to is not None and str(to) == "-":
        print(report.json())
        return
    print(report.markdown())
    if to is not None:
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(report.json() + "\n")


def machine() -> dict[str, object]:
    """What the figures were taken on, without its name."""
    load = os.getloadavg()[0]
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load at the end": f"{load:.1f}",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _spread(values: Sequence[float], digits: int = 2) -> str:
    middle, least, greatest = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({least:.{digits}f} to {greatest:.{digits}f})"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
