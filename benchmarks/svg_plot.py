"""Line plots as SVG text, with no library: panels on one scale, round numbers, one legend for all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#5a5a5a", "#1b6ca8", "#d1495b", "#2e8b57", "#e0a100", "#7b4fa6", "#00a6a6", "#b5651d")
WIDTH, HEIGHT = 380, 260  # of a panel's axes
LEFT, TOP, RIGHT, BOTTOM = 64, 34, 24, 52  # around them
HEAD, LEGEND_LINE, LEGEND_COLUMN = 40, 20, 220
LEAST_WIDTH = 760  # so that a title has room
ACROSS = 3  # panels side by side, at most
TICKS = 5


@dataclass(frozen=True, slots=True)
class Series:
    """One line: its name, its points (x, y) by ascending x, and its look, the same in all panels."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str = COLOURS[0]
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    series: Sequence[Series]


@dataclass(frozen=True, slots=True)
class _Axis:
    """From the round number below the least value to the one above the greatest."""

    start: float
    step: float
    count: int

    @classmethod
    def over(cls, values: Sequence[float], *, from_zero: bool) -> _Axis:
        low, high = (0.0 if from_zero else min(values, default=0.0)), max(values, default=1.0)
        step = _step(high - low)
        start = math.floor(low / step) * step
        return cls(start, step, max(1, math.ceil((high - start) / step - 1e-9)))

    def at(self, value: float) -> float:
        """0 at its start, 1 at its end."""
        return (value - self.start) / (self.step * self.count)

    @property
    def ticks(self) -> list[float]:
        return [self.start + number * self.step for number in range(self.count + 1)]


def line_plot(title: str, x_title: str, panels: Sequence[Panel]) -> str:
    """The SVG document."""
    lines = [series for panel in panels for series in panel.series]
    x_axis = _Axis.over([x for each in lines for x, _ in each.points], from_zero=False)
    y_axis = _Axis.over([y for each in lines for _, y in each.points], from_zero=True)
    looks = list({series.name: series for series in lines}.values())
    down = max(1, -(-len(panels) // ACROSS))
    across = max(1, -(-len(panels) // down))
    width = max(LEAST_WIDTH, across * (LEFT + WIDTH + RIGHT))
    columns = max(1, (width - LEFT) // LEGEND_COLUMN)
    legend = -(-len(looks) // columns) * LEGEND_LINE
    height = HEAD + legend + down * (TOP + HEIGHT + BOTTOM)
    body = [_text(LEFT, 26, title, "start", 17)]
    for index, look in enumerate(looks):
        x, y = LEFT + index % columns * LEGEND_COLUMN, HEAD + 6 + index // columns * LEGEND_LINE
        body.append(_stroke(f"M{x},{y} h28", look))
        body.append(_text(x + 34, y + 4, look.name, "start"))
    for index, panel in enumerate(panels):
        x = index % across * (LEFT + WIDTH + RIGHT) + LEFT
        y = HEAD + legend + index // across * (TOP + HEIGHT + BOTTOM) + TOP
        inside = "\n".join(_panel(panel, x_title, x_axis, y_axis))
        body.append(f'<g transform="translate({x},{y})">\n{inside}\n</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _panel(panel: Panel, x_title: str, x_axis: _Axis, y_axis: _Axis) -> list[str]:
    drawn = [_text(0, -12, panel.title, "start", 13)]
    for tick in y_axis.ticks:
        y = HEIGHT * (1 - y_axis.at(tick))
        drawn.append(f'<path d="M0,{y:.1f} h{WIDTH}" stroke="#dddddd"/>')
        drawn.append(_text(-8, y + 4, f"{tick:g}", "end"))
    for tick in x_axis.ticks:
        x = WIDTH * x_axis.at(tick)
        drawn.append(f'<path d="M{x:.1f},{HEIGHT} v5" stroke="#333333"/>')
        drawn.append(_text(x, HEIGHT + 19, f"{tick:g}", "middle"))
    drawn.append(f'<path d="M0,{HEIGHT} h{WIDTH}" stroke="#333333"/>')
    drawn.append(_text(WIDTH / 2, HEIGHT + 39, x_title, "middle"))
    for each in panel.series:
        points = [(WIDTH * x_axis.at(x), HEIGHT * (1 - y_axis.at(y))) for x, y in each.points]
        drawn.append(_stroke("M" + " L".join(f"{x:.1f},{y:.1f}" for x, y in points), each))
        inside = "white" if each.dashed else each.colour
        drawn += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{inside}" stroke="{each.colour}"/>'
            for x, y in points
        ]
    return drawn


def _stroke(path: str, series: Series) -> str:
    dashes = ' stroke-dasharray="6 4"' if series.dashed else ""
    return f'<path d="{path}" fill="none" stroke="{series.colour}" stroke-width="2"{dashes}/>'


def _step(range_: float) -> float:
    """A round number that divides an axis of that length into about TICKS."""
    if range_ <= 0:
        return 1.0
    rough = range_ / TICKS
    power = 10 ** math.floor(math.log10(rough))
    return float(next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough))


def _text(x: float, y: float, text: str, anchor: str, size: int = 12) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
    return f"<text {place}>{escape(text)}</text>"
