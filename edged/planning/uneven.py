"""Rings for given windows, and for models whose layers differ or may not be cut everywhere.

Rings are found as if all layers were alike, the average one or a little larger, and their cuts are moved to
allowed places. Then cuts of the best are moved by a place or two while it gets better by the true figures.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from edged.planning.arrange import Way, Window, combine, ring_of, ways
from edged.planning.cost import Problem, RingCost
from edged.planning.model_profile import LayerProfile, ModelProfile, TensorGroup
from edged.planning.plan import Objective

MOST_TRIES = 6_000  # moves of cuts times windows: about a second
MOST_SHIFTED = 8  # cuts that move together


@dataclass(frozen=True, slots=True)
class Placed:
    """A ring that fits: its goal, who runs what, and how."""

    goal: float
    owners: list[str]
    cuts: list[int]
    ways: dict[str, Way]


class Windows:
    """Rings for given cuts; remembers what it found for a device's windows."""

    def __init__(self, problem: Problem, objective: Objective) -> None:
        self._problem, self._objective = problem, objective
        self._known: dict[tuple[str, tuple[Window, ...]], tuple[Way, ...]] = {}

    def ring(self, owners: Sequence[str], cuts: Sequence[int]) -> RingCost | None:
        """The best ring in which owners[i] runs layers [cuts[i], cuts[i + 1]); None where memory is short."""
        found = self._try(owners, cuts)
        return None if found is None else ring_of(self._problem, owners, found[1])

    def _try(self, owners: Sequence[str], cuts: Sequence[int]) -> tuple[float, dict[str, Way]] | None:
        windows: dict[str, list[Window]] = {}
        for owner, window in zip(owners, pairwise(cuts), strict=True):
            windows.setdefault(owner, []).append(window)
        by_device = {device: self._ways(device, tuple(own)) for device, own in windows.items()}
        return combine(self._problem, owners, by_device, self._objective)

    def _ways(self, device: str, windows: tuple[Window, ...]) -> tuple[Way, ...]:
        key = (device, windows)
        if key not in self._known:
            costs, of = self._problem.devices[device], self._problem.of
            closes = device == self._problem.head and len(windows) > 1
            rest, closing = (windows[:-1], windows[-1]) if closes else (windows, None)
            self._known[key] = ways(costs, of, rest, closing)
        return self._known[key]

    def alone(self) -> RingCost | None:
        """The head with all layers in one window."""
        return self.ring([self._problem.head], [0, self._problem.model.n_layers])

    def placed(self, owners: Sequence[str], cuts: Sequence[int]) -> Placed | None:
        """The ring with its cuts moved to the nearest allowed places; None where that does not fit."""
        owners, at = without_empty(owners, snapped(cuts, self._problem.of.places))
        if owners[0] != self._problem.head or owners[-1] != self._problem.head:
            return None
        found = self._try(owners, at)
        return None if found is None else Placed(found[0], owners, at, found[1])

    def improved(self, start: Placed) -> RingCost:
        """The best ring that moves of the cuts lead to from `start`, each of them for the better."""
        best, places = start, self._problem.of.places
        left = MOST_TRIES // len(start.owners)
        going = True
        while going and left > 0:
            going = False
            for moved in _moves(best.cuts, places, len(dict.fromkeys(best.owners))):
                left -= 1
                tried = self._try(best.owners, moved)
                if tried is not None and tried[0] < best.goal * (1 - 1e-9):
                    best, going = Placed(tried[0], best.owners, moved, tried[1]), True
                    break
                if left <= 0:
                    break
        return ring_of(self._problem, best.owners, best.ways)


def snapped(cuts: Sequence[int], places: Sequence[int]) -> list[int]:
    """The nearest allowed places, ascending; the ends stay."""
    found = [0]
    for cut in cuts[1:-1]:
        at = bisect_left(places, cut)
        around = places[max(0, at - 1) : at + 1]
        found.append(max(found[-1], min(around, key=lambda place: (abs(place - cut), place))))
    return [*found, cuts[-1]]


def without_empty(owners: Sequence[str], cuts: Sequence[int]) -> tuple[list[str], list[int]]:
    """Without windows that have no layers, nor two of one device in a row."""
    kept: list[str] = []
    ends = [cuts[0]]
    for owner, (a, z) in zip(owners, pairwise(cuts), strict=True):
        if z == a:
            continue
        if kept and kept[-1] == owner:
            ends[-1] = z
        else:
            kept.append(owner)
            ends.append(z)
    return kept, ends


def _moves(cuts: Sequence[int], places: Sequence[int], n_devices: int) -> Iterator[list[int]]:
    """One cut by a place or two, then several by one: a layer goes from one window to a later one."""
    index = {place: i for i, place in enumerate(places)}
    inner = len(cuts) - 3  # cuts that may move: the closing window stays as small as it can be
    for length in range(1, min(n_devices + 1, MOST_SHIFTED) + 1):
        for first in range(1, inner - length + 2):
            for step in (-2, -1, 1, 2) if length == 1 else (-1, 1):
                to = [index[cut] + step for cut in cuts[first : first + length]]
                if to[0] < 1 or to[-1] >= len(places):
                    continue
                moved = [*cuts[:first], *(places[i] for i in to), *cuts[first + length :]]
                if moved[first - 1] < moved[first] and moved[first + length - 1] < moved[first + length]:
                    yield moved


def alike(model: ModelProfile, above_average: float = 0.0) -> ModelProfile:
    """The model as if all its layers were one: the average (0), the one with most bytes (1), or between."""
    average = _average(model.known_layers)
    largest = max(model.known_layers, key=lambda layer: layer.nbytes)
    more = 1.0 + above_average * (largest.nbytes / average.nbytes - 1.0)
    one = LayerProfile(
        groups=tuple(
            group.model_copy(
                update={"nbytes": round(group.nbytes * more), "weights": round(group.weights * more)}
            )
            for group in average.groups
        ),
        kv_bytes_per_token=average.kv_bytes_per_token,
    )
    tensor = max(layer.largest_tensor / max(1, layer.nbytes) for layer in model.known_layers)
    one = one.model_copy(update={"largest_tensor": round(tensor * one.nbytes)})
    fields = {name: getattr(model, name) for name in ModelProfile.model_fields}
    changed = {
        "layers": (one,) * model.n_layers,
        "layer_bytes": (one.nbytes,) * model.n_layers,
        "preferred": (),
        "fillers": (),
        "boundaries": tuple(range(1, model.n_layers)) if model.boundaries else (),
    }
    return ModelProfile(**{**fields, **changed})


def _average(layers: Sequence[LayerProfile]) -> LayerProfile:
    sums: dict[tuple[str, float], list[int]] = {}
    for layer in layers:
        for group in layer.groups:
            total = sums.setdefault((group.type, group.share), [0, 0])
            total[0] += group.nbytes
            total[1] += group.weights
    n = len(layers)
    return LayerProfile(
        groups=tuple(
            TensorGroup(type=name, share=share, nbytes=nbytes // n, weights=weights // n)
            for (name, share), (nbytes, weights) in sums.items()
        ),
        kv_bytes_per_token=sum(layer.kv_bytes_per_token for layer in layers) // n,
    )
