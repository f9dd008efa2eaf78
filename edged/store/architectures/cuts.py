"""Where a model may be cut; if nowhere, why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edged.store.architectures.derived import not_causal, unless_zero
from edged.store.architectures.layout import Layouts
from edged.store.architectures.shape import Shape
from edged.store.architectures.table import rule_of

EMBEDDING = "token_embd.weight"

# For every architecture: what makes a model one that yields no text, or whose windows would be another thing.
_REFUSALS = (unless_zero("router_layer", "it chooses among models"), not_causal)


@dataclass(frozen=True, slots=True)
class Cuts:
    """`preferred` are the boundaries between which windows need no layers but their own."""

    boundaries: tuple[int, ...]
    preferred: tuple[int, ...]
    reason: str


def cuts(shape: Shape, globals_: Iterable[str]) -> Cuts:
    """The layers before which this model may be cut. `globals_`: names of tensors outside the layers."""
    rule = rule_of(shape)
    for refusal in (rule.refusal, *_REFUSALS):
        if why := refusal(shape):
            return Cuts((), (), why)
    if EMBEDDING not in set(globals_):
        return Cuts((), (), f"it lacks {EMBEDDING}")
    if shape.n_layers == 1:
        return Cuts((), (), "it has one layer only")
    layouts = Layouts(shape, rule)
    return Cuts(layouts.boundaries(), layouts.preferred(), "")
