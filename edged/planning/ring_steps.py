"""What may be changed about a ring: windows that grow, shrink, come, go or change hands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

Window = tuple[int, int, int]  # device, and the units [first, last) that it runs; device 0 is the head

MOST_SHIFTED = 8  # windows that a layer passes at once
LENGTHS = 1, 2, 4  # units that a new window takes


@dataclass(frozen=True, slots=True)
class Step:
    """`windows` in the place of ring[at:until]."""

    at: int
    until: int
    windows: tuple[Window, ...]


def shifts(ring: Sequence[Window]) -> Iterator[Step]:
    """One boundary by a unit or two, or several in a row by one: so a layer passes other windows."""
    devices = len({window[0] for window in ring})
    n = len(ring)
    for length in range(1, min(devices + 1, MOST_SHIFTED, n - 1) + 1):
        for at in range(n - length):
            for by in (-2, -1, 1, 2) if length == 1 else (-1, 1):
                last = at + length
                windows = [(ring[at][0], ring[at][1], ring[at][2] + by)]
                windows += [(device, a + by, z + by) for device, a, z in ring[at + 1 : last]]
                windows.append((ring[last][0], ring[last][1] + by, ring[last][2]))
                if windows[0][1] < windows[0][2] and windows[-1][1] < windows[-1][2]:
                    yield Step(at, last + 1, tuple(windows))


def changes(ring: Sequence[Window], devices: int, every: int = 1, turn: int = 0) -> Iterator[Step]:
    """Windows that go, change hands or come; of those that `devices` would gain one of `every`, by turns."""
    for at in range(1, len(ring) - 1):
        (before, a, _), (own, first, last), (after, _, z) = ring[at - 1 : at + 2]
        middle = (first + last) // 2
        for cut in {first, middle, last}:
            yield _joined(ring, at - 1, at + 2, ((before, a, cut), (after, cut, z)))
        for device in range(devices):
            if device != own and (at + device) % every == turn:
                yield _joined(ring, at, at + 1, ((device, first, last),))
    for at, ((one, a, cut), (other, _, z)) in enumerate(pairwise(ring)):
        for device in range(devices):
            for length in LENGTHS if (at + device) % every == turn else ():
                if device not in (one, other) and cut - length > a:
                    new = (one, a, cut - length), (device, cut - length, cut), (other, cut, z)
                    yield Step(at, at + 2, new)
                if device not in (one, other) and cut + length < z:
                    new = (one, a, cut), (device, cut, cut + length), (other, cut + length, z)
                    yield Step(at, at + 2, new)
                begin = (a + cut - length) // 2
                if device != one and a < begin and begin + length < cut:
                    new = (one, a, begin), (device, begin, begin + length), (one, begin + length, cut)
                    yield Step(at, at + 1, new)


def _joined(ring: Sequence[Window], at: int, until: int, windows: tuple[Window, ...]) -> Step:
    """With neighbours of one device as one window."""
    if windows[0][0] == ring[at - 1][0] and at > 0:
        at -= 1
        windows = (ring[at], *windows)
    if until < len(ring) and windows[-1][0] == ring[until][0]:
        windows = (*windows, ring[until])
        until += 1
    joined: list[Window] = []
    for device, a, z in windows:
        if joined and joined[-1][0] == device:
            joined[-1] = (device, joined[-1][1], z)
        elif a < z:
            joined.append((device, a, z))
    return Step(at, until, tuple(joined))
