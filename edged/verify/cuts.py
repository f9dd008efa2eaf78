"""Which cuts to try: pure choices among the boundaries that a model allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cut:
    """A model in windows: `boundaries` are the layers before which it is cut, ascending."""

    boundaries: tuple[int, ...]

    @property
    def n_windows(self) -> int:
        return len(self.boundaries) + 1

    def edges(self, n_layers: int) -> list[tuple[int, int]]:
        return list(zip((0, *self.boundaries), (*self.boundaries, n_layers), strict=True))


@dataclass(frozen=True, slots=True)
class Refused:
    """A number of windows that the model does not allow."""

    windows: int
    reason: str


def cut_into(windows: int, n_layers: int, allowed: Sequence[int], why: str) -> Cut | Refused:
    """`windows` windows of about the same length. `why`: the model's own reason to allow few boundaries."""
    if windows > n_layers:
        return Refused(windows, f"it has {n_layers} layer{'s' if n_layers > 1 else ''} only")
    if windows - 1 > len(allowed):
        reason = f"it can be cut in {len(allowed) + 1} windows at most" if allowed else "it cannot be cut"
        return Refused(windows, f"{reason}: {why}" if why else reason)
    free = list(allowed)
    chosen: list[int] = []
    for index in range(1, windows):
        ideal = index * n_layers / windows
        left = windows - 1 - index  # boundaries that must still find a place behind this one
        best = min(free[: len(free) - left], key=lambda boundary: (abs(boundary - ideal), boundary))
        chosen.append(best)
        free = [boundary for boundary in free if boundary > best]
    return Cut(tuple(chosen))


def usual_cuts(n_layers: int, allowed: Sequence[int], small: bool) -> list[Cut]:
    """Two windows, three, and for a small model as many as it allows."""
    tried = [cut_into(windows, n_layers, allowed, "") for windows in (2, 3)]
    cuts = [cut for cut in tried if isinstance(cut, Cut)]
    if small and allowed:
        cuts.append(Cut(tuple(allowed)))
    return list(dict.fromkeys(cuts))
