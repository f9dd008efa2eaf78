"""Line plots as SVG text, with no library: axes from zero, round numbers, a legend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#e0a100", "#7b4fa6", "#444444", "#00a6a6", "#b5651d")
WIDTH, HEIGHT = 760, 420
LEFT, TOP, RIGHT, BOTTOM = 70, 40, 260, 50
TICKS = 5


@dataclass(frozen=True, slots=True)
class Series:
    """One line: its name and its points (x, y) by ascending x."""

    name: str
    points: Sequence[tuple[float, float]]


def line_plot(title: str, x_title: str, series: Sequence[Series]) -> str:
    """The SVG document."""
    xs = [x for each in series for x, _ in each.points]
    ys = [y for each in series for _, y in each.points]
    x_step, y_step = _step(max(xs, default=1)), _step(max(ys, default=1))
    x_end = x_step * math.ceil(max(xs, default=1) / x_step) or 1
    y_end = y_step * math.ceil(max(ys, default=1) / y_step) or 1

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return LEFT + across * x / x_end, TOP + up * (1 - y / y_end)

    body = [_text(LEFT, TOP - 16, title, "start", 15)]
    for number in range(round(y_end / y_step) + 1):
        x, y = at(0, number * y_step)
        body.append(_line((x, y), at(x_end, number * y_step), "#dddddd"))
        body.append(_text(x - 8, y + 4, f"{number * y_step:g}", "end"))
    for number in range(round(x_end / x_step) + 1):
        x, y = at(number * x_step, 0)
        body.append(_text(x, y + 18, f"{number * x_step:g}", "middle"))
    body.append(_text(at(x_end / 2, 0)[0], HEIGHT - 12, x_title, "middle"))
    body.append(_line(at(0, 0), at(x_end, 0), "#333333"))
    for index, each in enumerate(series):
        body += _drawn([at(*point) for point in each.points], each.name, index)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _drawn(points: Sequence[tuple[float, float]], name: str, index: int) -> list[str]:
    colour = COLOURS[index % len(COLOURS)]
    dashes = ' stroke-dasharray="6 3"' if index >= len(COLOURS) else ""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    drawn = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>']
    drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
    x, y = WIDTH - RIGHT + 16, TOP + 18 * index
    drawn.append(_line((x, y), (x + 20, y), colour, 2))
    drawn.append(_text(x + 26, y + 4, name, "start"))
    return drawn


def _step(largest: float) -> float:
    """A round number that divides an axis up to `largest` into about TICKS."""
    if largest <= 0:
        return 1.0
    rough = largest / TICKS
    power = 10 ** math.floor(math.log10(rough))
    return float(next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough))


def _line(start: tuple[float, float], end: tuple[float, float], colour: str, width: float = 1) -> str:
    (x1, y1), (x2, y2) = start, end
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="{colour}" stroke-width="{width:g}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str, size: int = 12) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
    return f"<text {place}>{escape(text)}</text>"
