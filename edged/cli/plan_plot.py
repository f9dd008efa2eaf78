"""A ring as a time line (SVG): one row per device, one token from left to right."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from edged.planning.cost import RingCost

LEFT, WIDTH, ROW, BAR = 150, 960, 46, 18  # pixels
TOP = 64
COLOURS = {
    "resident": "#4878a8",
    "gpu": "#5a9e6f",
    "streamed": "#d58b3c",
    "output": "#8c6bb1",
    "wait": "#c94f4f",
    "hop": "#9a9a9a",
    "disk": "#e8c39a",
}
LABELS = {
    "resident": "layers in memory",
    "gpu": "layers on the GPU",
    "streamed": "streamed layers",
    "output": "output side",
    "wait": "waiting for the disk",
    "hop": "on the way",
    "disk": "disk at work",
}
TICKS = 8  # about so many marks on the time axis


def time_line(ring: RingCost) -> str:
    """The picture of one token, as text. Where disks set the pace, the end of the token waits for them."""
    devices = list(ring.shares)
    scale = WIDTH / max(ring.token, 1e-9)
    height = TOP + ROW * len(devices) + 60
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 30}" height="{height}" '
        f'font-family="sans-serif" font-size="12">',
        f'<rect width="{LEFT + WIDTH + 30}" height="{height}" fill="white"/>',
        f'<text x="10" y="22" font-size="15">{escape(_title(ring))}</text>',
        *_legend(ring),
        *_axis(ring, scale, TOP + ROW * len(devices)),
    ]
    for i, device in enumerate(devices):
        y = TOP + ROW * i
        name = ring.problem.devices[device].name
        lines.append(f'<text x="10" y="{y + BAR - 4}">{escape(name)}</text>')
        if ring.shares[device].disk:
            lines.append(_bar("disk", 0.0, ring.shares[device].disk, y + BAR + 3, 7, scale, "disk at work"))
    for device, kind, start, length, text in _events(ring):
        y = TOP + ROW * devices.index(device)
        lines.append(_bar(kind, start, length, y, BAR, scale, text))
    lines.append("</svg>")
    return "\n".join(lines) + "\n"


def _events(ring: RingCost) -> Iterator[tuple[str, str, float, float, str]]:
    """(device, kind, start, seconds, text) of everything that happens on the way round."""
    now = 0.0
    of = ring.problem.of
    visits = {device: iter(share.visits) for device, share in ring.shares.items()}
    previous = ""
    for hop in ring.hops:
        if previous:
            way = ring.problem.hop_s(previous, hop.device)
            yield hop.device, "hop", now, way, f"from {ring.problem.devices[previous].name}"
            now += way
        previous = hop.device
        visit = next(visits[hop.device])
        device = ring.problem.devices[hop.device]
        first_gpu, first_streamed = hop.first + hop.resident, hop.last - hop.streamed
        parts = [("resident", device.cpu.decode.of(hop.first, first_gpu), hop.first, first_gpu)]
        if device.gpu is not None and hop.gpu_layers:
            parts.append(("gpu", device.gpu.decode.of(first_gpu, first_streamed), first_gpu, first_streamed))
        parts.append(("wait", visit.stall, first_streamed, hop.last))
        parts.append(("streamed", device.cpu.decode.of(first_streamed, hop.last), first_streamed, hop.last))
        rest = visit.compute - sum(seconds for kind, seconds, _, _ in parts if kind != "wait")
        parts.append(("output" if hop.last == of.model.n_layers else "resident", rest, hop.first, hop.last))
        for kind, seconds, first, last in parts:
            if seconds > 0:
                yield hop.device, kind, now, seconds, f"{LABELS[kind]}, layers {first} to {last - 1}"
                now += seconds


def _title(ring: RingCost) -> str:
    model = ring.problem.model.name or ring.problem.model.model
    return f"{model}: one token in {1e3 * ring.token:.1f} ms"


def _legend(ring: RingCost) -> Iterator[str]:
    x = LEFT
    shown = {kind for _, kind, _, _, _ in _events(ring)}
    if any(share.disk for share in ring.shares.values()):
        shown.add("disk")
    for kind, label in LABELS.items():
        if kind in shown:
            yield f'<rect x="{x}" y="36" width="10" height="10" fill="{COLOURS[kind]}"/>'
            yield f'<text x="{x + 14}" y="45">{label}</text>'
            x += 30 + 7 * len(label)


def _axis(ring: RingCost, scale: float, y: float) -> Iterator[str]:
    step = _round_step(1e3 * ring.token / TICKS)
    at = 0.0
    while at <= 1e3 * ring.token:
        x = LEFT + at / 1e3 * scale
        yield f'<line x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{y}" stroke="#dddddd"/>'
        yield f'<text x="{x:.1f}" y="{y + 16}" text-anchor="middle">{at:g} ms</text>'
        at += step


def _round_step(wanted: float) -> float:
    power = 1.0
    while power * 10 <= wanted:
        power *= 10
    while power > wanted:
        power /= 10
    return next(power * times for times in (1, 2, 5, 10) if power * times >= wanted)


def _bar(kind: str, start: float, seconds: float, y: float, height: float, scale: float, text: str) -> str:
    x, width = LEFT + start * scale, max(0.5, seconds * scale)
    return (
        f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{height}" fill="{COLOURS[kind]}">'
        f"<title>{escape(text)}: {1e3 * seconds:.2f} ms</title></rect>"
    )
