"""Which layers a window is made of: its own, and sometimes layers of zeros that put them into their place.

Layers of zeros before the window's own are computed for nothing: the state is written over what they yield.
Those after it are never computed, since the graph stops where the state is read. Both take memory, so a
planner does well to stay on `preferred` boundaries, whose windows need none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from edged.store.architectures.kinds import Kinds, layer_kinds
from edged.store.architectures.shape import Shape
from edged.store.architectures.table import Rule


@dataclass(frozen=True, slots=True)
class Layout:
    """Numbers of the whole model's layers, ascending: fillers, the window's own, fillers."""

    before: tuple[int, ...]
    own: tuple[int, ...]
    after: tuple[int, ...] = ()

    @property
    def layers(self) -> tuple[int, ...]:
        return self.before + self.own + self.after

    @property
    def is_pure(self) -> bool:
        return not self.before and not self.after


class Layouts:
    """The layouts of one model's windows."""

    def __init__(self, shape: Shape, rule: Rule) -> None:
        self._shape = shape
        self._rule = rule
        self._kinds = layer_kinds(shape, rule)
        self._required: Kinds = frozenset().union(*self._kinds)
        self._period = math.lcm(*(_period(shape, period) for period in rule.periods))

    def window(self, first: int, last: int) -> Layout:
        """How the layers [first, last) are to be loaded; all the model's layers need no fillers."""
        layout = Layout(tuple(range(self._begin(first), first)), tuple(range(first, last)))
        if first > 0 and self._rule.after_0(self._shape) and 0 not in layout.before:
            layout = Layout((0, *layout.before), layout.own)
        for kind in sorted(self._required):
            layout = self._with(layout, kind)
        heads = self._shape.listed("attention.head_count")
        if heads and heads[0] and not heads[layout.layers[0]] and not self._rule.hybrid:
            # libllama takes from the first layer's heads what it needs for all
            earlier = next(layer for layer in range(first - 1, -1, -1) if heads[layer])
            layout = replace(layout, before=(earlier, *layout.before))
        while len(layout.layers) in self._rule.counts and len(layout.layers) < self._shape.n_layers:
            layout = self._longer(layout)
        return layout

    def boundaries(self) -> tuple[int, ...]:
        """Where a window may begin at all."""
        return tuple(
            layer for layer in range(1, self._shape.n_layers) if self._rule.begins(self._shape, layer)
        )

    def preferred(self) -> tuple[int, ...]:
        """Boundaries between any two of which a window needs no fillers."""
        n_layers = self._shape.n_layers
        found: list[int] = []
        start = 0
        for boundary in self.boundaries():
            if self.window(start, boundary).is_pure and self._begin(boundary) == boundary:
                found.append(boundary)
                start = boundary
        while found and not self.window(found[-1], n_layers).is_pure:
            found.pop()
        return tuple(found)

    def _begin(self, first: int) -> int:
        return self._rule.begin(self._shape, first - first % self._period)

    def _with(self, layout: Layout, kind: str) -> Layout:
        """The layout with a layer of this kind, after the window's own if there is one, else before them."""
        if any(kind in self._kinds[layer] for layer in layout.layers):
            return layout
        end = layout.own[-1] + 1
        for later in range(end, self._shape.n_layers):
            if kind in self._kinds[later]:
                more = {later} if self._free else set(range(end, later + 1))
                return replace(layout, after=tuple(sorted(more.union(layout.after))))
        start = layout.own[0]
        for earlier in range(start - 1, -1, -1):
            if kind in self._kinds[earlier]:
                more = {earlier} if self._free else set(range(self._begin(earlier), start))
                return replace(layout, before=tuple(sorted(more.union(layout.before))))
        raise AssertionError(f"no layer is {kind}")

    @property
    def _free(self) -> bool:
        """Whether nothing in libllama's code depends on a layer's number."""
        return self._period == 1 and not self._rule.neighbours

    def _longer(self, layout: Layout) -> Layout:
        end = layout.layers[-1] + 1
        if layout.own[-1] + 1 < self._shape.n_layers and end < self._shape.n_layers:
            return replace(layout, after=(*layout.after, end))
        start = layout.layers[0]
        more = range(self._begin(start - 1), start) if start > 0 else (0,)  # 0 a second time, if need be
        return replace(layout, before=(*more, *layout.before))


def _period(shape: Shape, period: int | str) -> int:
    return max(1, period if isinstance(period, int) else shape.integer(period))
