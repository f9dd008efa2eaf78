"""A window's hyperparameters: the whole model's, as they hold for the layers that the window is made of."""

from __future__ import annotations

from edged.store.architectures.kinds import recurrent_layers, sliding_layers
from edged.store.architectures.shape import Shape
from edged.store.architectures.table import Rule
from edged.store.gguf_file import Pair, Value, ValueType, make_pair

# The first so many layers are special; in a window, so many of its own first ones are.
_LEADING = ("leading_dense_block_count", "hash_layer_count")
_PREDICTION = "nextn_predict_layers"


def window_pairs(
    shape: Shape, rule: Rule, layers: tuple[int, ...], n_vocab: int, entries: list[Pair]
) -> list[Pair]:
    """`entries` are the whole model's hyperparameters, `layers` those of the window, `n_vocab` its tokens.

    From the first layer's heads libllama takes what it needs for all, so a recurrent layer, which has none,
    must not say so in the first place.
    """
    written = _defaults(shape) | _patterns(shape, rule, layers)
    written |= {name: value for name, value in rule.written(shape, layers).items() if value is not None}
    removed = {name for name, value in rule.written(shape, layers).items() if value is None}
    written |= {"block_count": len(layers), "vocab_size": n_vocab}
    for name in _LEADING:
        if isinstance(count := shape.value(name), int):
            written[name] = sum(layer < count for layer in layers)
    replaced = {shape.key(name) for name in (*written, *removed, _PREDICTION)}
    pairs = [_typed(shape.key(name), value) for name, value in written.items()]
    pairs += [_sliced(shape, rule, layers, pair) for pair in entries if pair.key not in replaced]
    return pairs


def _sliced(shape: Shape, rule: Rule, layers: tuple[int, ...], pair: Pair) -> Pair:
    value = pair.value()
    if not isinstance(value, tuple) or not shape.counts_layers(pair.key, value):
        return pair
    value = tuple(value[layer] for layer in layers)
    if rule.hybrid and pair.key == shape.key("attention.head_count"):
        value = (value[0] or shape.integer("attention.head_count"), *value[1:])
    return make_pair(pair.key, value, pair.value_type, pair.element_type)


def _defaults(shape: Shape) -> dict[str, Value]:
    """What libllama would derive from the first layer's heads, where a window's first may be another."""
    listed = shape.listed("attention.head_count")
    if listed is None or len(set(listed)) == 1 or int(listed[0]) < 1:
        return {}
    size = shape.n_embd // int(listed[0])
    found: dict[str, Value] = {}
    for name in ("attention.key_length", "attention.value_length"):
        if shape.value(name) is None:
            found[name] = size
    if shape.value("rope.dimension_count") is None:
        found["rope.dimension_count"] = shape.integer("attention.key_length", size)
    return found


def _patterns(shape: Shape, rule: Rule, layers: tuple[int, ...]) -> dict[str, Value]:
    """Built-in patterns and periods as lists, since they would begin anew in each window."""
    found: dict[str, Value] = {}
    sliding = sliding_layers(shape, rule)
    if sliding is not None:
        found["attention.sliding_window_pattern"] = tuple(sliding[layer] for layer in layers)
    if rule.interval and (recurrent := recurrent_layers(shape, rule)) is not None:
        found["attention.recurrent_layers"] = tuple(recurrent[layer] for layer in layers)
    return found


def _typed(key: str, value: Value) -> Pair:
    if isinstance(value, tuple):
        kind = ValueType.BOOL if isinstance(value[0], bool) else ValueType.UINT32
        return make_pair(key, value, ValueType.ARRAY, kind)
    if isinstance(value, bool):
        return make_pair(key, value, ValueType.BOOL)
    if isinstance(value, float):
        return make_pair(key, value, ValueType.FLOAT32)
    return make_pair(key, value, ValueType.UINT32)
