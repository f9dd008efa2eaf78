"""Rings for given windows, and for models whose layers differ or may not be cut everywhere.

A first ring is found as if all layers were the average one, its cuts are moved to allowed places, and then
one cut after the other is moved by a place or two while the ring gets better by the true figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from edged.planning.arrange import Way, Window, combine, ring_of, ways
from edged.planning.cost import Problem, RingCost
from edged.planning.model_profile import LayerProfile, ModelProfile, TensorGroup
from edged.planning.plan import Objective


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

    def improved(self, owners: Sequence[str], cuts: Sequence[int]) -> RingCost | None:
        """The best ring that single moves of the cuts lead to from the nearest allowed ones."""
        places = self._problem.of.places
        start = snapped(cuts, places)
        owners, start = without_empty(owners, start)
        if owners[0] != self._problem.head or owners[-1] != self._problem.head:
            return None
        found = self._try(owners, start)
        if found is None:
            return None
        at, going = start, True
        while going:
            going = False
            for moved in _moves(at, places):
                tried = self._try(owners, moved)
                if tried is not None and tried[0] < found[0] * (1 - 1e-9):
                    at, found, going = moved, tried, True
                    break
        return ring_of(self._problem, owners, found[1])


def snapped(cuts: Sequence[int], places: Sequence[int]) -> list[int]:
    """The nearest allowed places, ascending; the ends stay."""
    found = [0]
    for cut in cuts[1:-1]:
        found.append(max(found[-1], min(places, key=lambda place: (abs(place - cut), place))))
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


def _moves(cuts: Sequence[int], places: Sequence[int]) -> Iterator[list[int]]:
    index = {place: i for i, place in enumerate(places)}
    inner = range(1, len(cuts) - 2)  # the closing window stays as small as it can be
    for at in inner:
        for step in (-2, -1, 1, 2):
            to = index[cuts[at]] + step
            if 0 < to < len(places) and cuts[at - 1] < places[to] < cuts[at + 1]:
                yield [*cuts[:at], places[to], *cuts[at + 1 :]]
    for at in inner:  # a whole window a place on
        for step in (-1, 1):
            ends = [index[cuts[at]] + step, index[cuts[at + 1]] + step] if at + 1 in inner else []
            if ends and max(ends) < len(places) and min(ends) > 0:
                moved = [*cuts[:at], places[ends[0]], places[ends[1]], *cuts[at + 2 :]]
                if all(a < b for a, b in pairwise(moved)):
                    yield moved


def alike(model: ModelProfile, *, largest: bool) -> ModelProfile:
    """The model as if all its layers were the average one, or the one with most bytes."""
    layers = model.known_layers
    if largest:
        one = max(layers, key=lambda layer: layer.nbytes)
        kept = max(layer.kv_bytes_per_token for layer in layers)
        one = one.model_copy(update={"kv_bytes_per_token": kept})
    else:
        one = _average(layers)
    fields = {name: getattr(model, name) for name in ModelProfile.model_fields}
    changed = {
        "layers": (one,) * model.n_layers,
        "layer_bytes": (one.nbytes,) * model.n_layers,
        "preferred": (),
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
