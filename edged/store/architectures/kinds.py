"""What kinds of layers a model has: a window that lacks a kind may end the process inside libllama."""

from __future__ import annotations

from edged.store.architectures.shape import Shape
from edged.store.architectures.table import Pattern, Rule

SLIDING = "sliding"  # attends to a window of positions only
ATTENTION = "attention"
RECURRENT = "recurrent"

Kinds = frozenset[str]


def layer_kinds(shape: Shape, rule: Rule) -> tuple[Kinds, ...]:
    """For each layer the kinds of which every window must have one."""
    found: list[set[str]] = [set() for _ in range(shape.n_layers)]
    sliding = sliding_layers(shape, rule)
    if sliding is not None and any(sliding):
        for layer, yes in zip(found, sliding, strict=True):
            if yes:
                layer.add(SLIDING)
    recurrent = recurrent_layers(shape, rule)
    if recurrent is not None and any(recurrent) and not all(recurrent):
        widths = (shape.listed("feed_forward_length") if rule.mlp_layers else None) or (0,) * shape.n_layers
        for layer, yes, width in zip(found, recurrent, widths, strict=True):
            if yes or not width:
                layer.add(RECURRENT if yes else ATTENTION)
    for at, kind in rule.kinds(shape).items():
        found[at].add(kind)
    return tuple(frozenset(layer) for layer in found)


def sliding_layers(shape: Shape, rule: Rule) -> tuple[bool, ...] | None:
    """Which layers attend to a sliding window; None where the model has no such choice."""
    if not rule.slides(shape):
        return None
    listed = shape.listed("attention.sliding_window_pattern")
    if listed is not None:
        return tuple(bool(entry) for entry in listed)
    if rule.pattern is None:
        return None
    period = shape.integer("attention.sliding_window_pattern", rule.pattern.period)
    return _repeated(Pattern(period, rule.pattern.dense_first), shape.n_layers)


def recurrent_layers(shape: Shape, rule: Rule) -> tuple[bool, ...] | None:
    """Which layers keep a state instead of keys and values; None where the model has no such choice."""
    if not rule.hybrid:
        return None
    if (listed := shape.listed("attention.recurrent_layers")) is not None:
        return tuple(bool(entry) for entry in listed)
    if rule.interval:
        interval = shape.integer("full_attention_interval", rule.interval)
        return tuple(interval == 0 or (layer + 1) % interval != 0 for layer in range(shape.n_layers))
    heads = shape.listed("attention.head_count_kv")
    if heads is None:
        return None
    widths = shape.listed("feed_forward_length") if rule.mlp_layers else None
    return tuple(
        not count and not width for count, width in zip(heads, widths or (0,) * len(heads), strict=True)
    )


def _repeated(pattern: Pattern, n_layers: int) -> tuple[bool, ...]:
    if pattern.period == 0:
        return (True,) * n_layers
    full = 0 if pattern.dense_first else pattern.period - 1
    return tuple(layer % pattern.period != full for layer in range(n_layers))
