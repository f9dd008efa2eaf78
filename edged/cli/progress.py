"""Progress on stderr: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edged.cli.terminal import clean, say

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from edged.rpc.messages import Progress

QUARTERS = 4  # lines per stage where there is no terminal


class PlainProgress:
    """A line when a stage begins, at each quarter of it, and at its end."""

    def __init__(self) -> None:
        self._quarter: dict[tuple[str, str], int] = {}

    def show(self, step: Progress) -> None:
        key = (step.stage, step.device)
        quarter = QUARTERS * step.done // step.total if step.total else 0
        if self._quarter.get(key, -1) >= quarter:
            return
        self._quarter[key] = quarter
        where = f" on {step.device}" if step.device else ""
        say(f"{step.stage}{where}{_amount(step)}")


class BarProgress:
    """One bar per stage and device."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[tuple[str, str], TaskID] = {}

    def show(self, step: Progress) -> None:
        key = (step.stage, step.device)
        if key not in self._tasks:
            where = f" on {step.device}" if step.device else ""
            self._tasks[key] = self._bars.add_task(clean(f"{step.stage}{where}"), total=None, amount="")
        done = step.total if step.finished else step.done
        self._bars.update(
            self._tasks[key],
            completed=done,
            total=step.total or None,
            amount=_amount(step).removeprefix(": "),
        )


@contextmanager
def progress_view() -> Iterator[PlainProgress | BarProgress]:
    if not sys.stderr.isatty():
        yield PlainProgress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[amount]}", markup=False),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        yield BarProgress(bars)


def follow(steps: Iterable[Progress]) -> None:
    """Show `steps` until they end; what they raise is raised here."""
    with progress_view() as view:
        for step in steps:
            view.show(step)


def size_text(size: int) -> str:
    """Bytes for a person: `1.6 GiB`."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def _amount(step: Progress) -> str:
    if not step.total:
        return ""
    if step.unit == "bytes":
        return f": {size_text(step.done)} of {size_text(step.total)}"
    return f": {step.done} of {step.total} {step.unit}"
