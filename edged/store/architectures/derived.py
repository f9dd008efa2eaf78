"""Small functions that rows of the table name: what libllama derives from a whole model's shape.

Each takes the whole model's shape; where it also takes `layers`, those are the layers a window is made of,
by their number in the whole model.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edged.backend.source import Factor
from edged.store.architectures.shape import Shape

Layers = tuple[int, ...]
Written = dict[str, int | float | bool | tuple[int, ...] | None]
"""Hyperparameters to be written into a window's header, by their name; None removes one."""

Single = np.float32


def never(_shape: Shape) -> bool:
    return False


def always(_shape: Shape) -> bool:
    return True


def if_sliding(shape: Shape) -> bool:
    return shape.integer("attention.sliding_window") > 0


# What is written out


def nothing(_shape: Shape, _layers: Layers) -> Written:
    return {}


def unscaled(shape: Shape, layers: Layers) -> Written:
    """A state is no embedding: what scales those must leave it alone."""
    return {} if 0 in layers or shape.value("embedding_scale") is None else {"embedding_scale": 1.0}


def no_deepstack(_shape: Shape, _layers: Layers) -> Written:
    """Images add to the first layers; to text libllama adds zeros."""
    return {"n_deepstack_layers": 0}


def low_rank_queries(shape: Shape, _layers: Layers) -> Written:
    """DeepSeek-lite and GLM 4.7 Lite are known by their number of layers and tokens."""
    written: Written = {}
    if shape.value("attention.q_lora_rank") is None:
        written["attention.q_lora_rank"] = 0
    if not shape.integer("expert_gating_func"):
        sigmoid = shape.n_layers in (47, 48) and shape.n_vocab == 154_880
        written["expert_gating_func"] = 2 if sigmoid else 1
    return written


def scaled_residual(shape: Shape, _layers: Layers) -> Written:
    """MiniCPM's residual scale, 1.4 over the root of the number of layers."""
    if shape.value("residual_scale") is not None:
        return {}
    return {"residual_scale": float(Single(1.4) / np.sqrt(Single(shape.n_layers)))}


def ngram_layers(shape: Shape, layers: Layers) -> Written:
    """Layers that look up n-grams of tokens; libllama wants no list rather than an empty one."""
    listed = token_lookups(shape)
    inside = tuple(at for at, layer in enumerate(layers) if layer in listed)
    return {"ple.layers": inside or None} if listed else {}


def shared_keys(shape: Shape, layers: Layers) -> Written:
    """Gemma 4: the last layers use keys and values of earlier ones."""
    shared = shape.integer("attention.shared_kv_layers")
    return {"attention.shared_kv_layers": shared if layers[-1] + 1 == shape.n_layers else 0}


# Factors


def no_factors(_shape: Shape, _layers: Layers) -> tuple[Factor, ...]:
    return ()


def by_root_of_depth(shape: Shape, layers: Layers) -> tuple[Factor, ...]:
    """MiniCPM3 scales what a layer adds by 1.4 over the root of the number of layers."""
    right, wrong = (float(Single(1.4) / np.sqrt(Single(count))) for count in (shape.n_layers, len(layers)))
    return tuple(Factor(name, wrong, right) for name in ("hidden_scaled", "hidden_scaled_ffn"))


def by_head_of_27b(depth: int) -> Callable[[Shape, Layers], tuple[Factor, ...]]:
    """Gemma 2 and 3 of 27B, known by depth, scale queries by n_embd / heads, others by a head's size."""

    def factors(shape: Shape, layers: Layers) -> tuple[Factor, ...]:
        heads = shape.integer("attention.head_count", 1) or 1
        size = shape.integer("attention.key_length", shape.n_embd // heads)

        def scale(count: int) -> float:
            length = shape.n_embd // heads if count == depth else size
            return float(Single(1) / np.sqrt(Single(length)))

        return (Factor("", scale(len(layers)), scale(shape.n_layers)),)

    return factors


def by_slope(shape: Shape, layers: Layers) -> tuple[Factor, ...]:
    """MiniMax-01: the decay of a layer depends on its place among all layers."""

    def slope(layer: int, count: int) -> float:
        return float(Single(1.0 - 1.0 * layer / (count - 1) + 1e-5))

    return tuple(
        Factor("", slope(at, len(layers)), slope(layer, shape.n_layers)) for at, layer in enumerate(layers)
    )


# Kinds of layers


def alike(_shape: Shape) -> dict[int, str]:
    return {}


def full_attention(shape: Shape) -> dict[int, str]:
    """Llama 4: every fourth layer has no positions, and libllama wants to scale its queries by them."""
    return dict.fromkeys(range(3, shape.n_layers, 4), "full")


def not_sliding(shape: Shape) -> dict[int, str]:
    listed = shape.listed("attention.sliding_window_pattern") or ()
    return {layer: "full" for layer, sliding in enumerate(listed) if not sliding}


def compressed(shape: Shape) -> dict[int, str]:
    """DeepSeek 4 has a cache for each ratio by which layers compress the past."""
    listed = shape.listed("attention.compress_ratios") or ()
    return {layer: f"compressed {ratio:g}" for layer, ratio in enumerate(listed) if ratio}


# Which layers look at tokens


def no_tokens(_shape: Shape) -> frozenset[int]:
    return frozenset()


def hash_routed(shape: Shape) -> frozenset[int]:
    return frozenset(range(shape.integer("hash_layer_count")))


def token_lookups(shape: Shape) -> frozenset[int]:
    value = shape.value("ple.layers")
    return frozenset(int(entry) for entry in value) if isinstance(value, tuple) else frozenset()


# Where a window may begin


def anywhere(_shape: Shape, first: int) -> int:
    return first


def at_own_indexer(shape: Shape, first: int) -> int:
    """The layer at which a window must begin for `first` to find the selection that it shares."""
    types = shape.listed("attention.indexer.types") or ()
    while 0 < first < len(types) and not types[first]:
        first -= 1
    return first


def at_any(_shape: Shape, _first: int) -> bool:
    return True


def finds_its_selection(shape: Shape, first: int) -> bool:
    """A layer may take over which positions an earlier one attends to; if those are all, none is missed."""
    types = shape.listed("attention.indexer.types")
    everything = shape.integer("attention.indexer.top_k") >= shape.integer("context_length", 2**31)
    return everything or types is None or bool(types[first])


def before_shared_keys(shape: Shape, first: int) -> bool:
    """Whoever shares keys needs the last two layers that have some, one of each kind."""
    shared = shape.integer("attention.shared_kv_layers")
    return not shared or first <= shape.n_layers - shared - 2


# Why a model is not cut


def no_refusal(_shape: Shape) -> str:
    return ""


def known_by_depth(*depths: int) -> Callable[[Shape], str]:
    def refusal(shape: Shape) -> str:
        if shape.n_layers not in depths:
            return ""
        return f"llama.cpp recognises {shape.architecture} of {shape.n_layers} layers by their number"

    return refusal


def deep(depth: int) -> Callable[[Shape], str]:
    def refusal(shape: Shape) -> str:
        if shape.n_layers < depth:
            return ""
        return f"llama.cpp treats {shape.architecture} of {depth} layers and more in another way than fewer"

    return refusal


def because(reason: str) -> Callable[[Shape], str]:
    return lambda _shape: reason


def unless_zero(key: str, reason: str) -> Callable[[Shape], str]:
    """Refused where this metadata is present and not zero (of a list, one entry; -1 stands for no)."""

    def refusal(shape: Shape) -> str:
        value = shape.value(key)
        entries = value if isinstance(value, tuple) else (value,)
        return reason if any(entry not in (None, 0, -1, False) for entry in entries) else ""

    return refusal


def without_chunks(shape: Shape) -> str:
    """Llama 4 without chunked attention: libllama leaves out the positions in the very last layer."""
    return "its last layer is another than the rest" if shape.value("attention.sliding_window") == 0 else ""


def deepstacked(shape: Shape) -> str:
    """Of the mapping's entries, -1 stands for a layer that no image goes into."""
    mapping = shape.listed("deepstack_mapping") or ()
    return "images go into several of its layers" if any(entry >= 0 for entry in mapping) else ""


def not_causal(shape: Shape) -> str:
    return "its tokens attend to later ones" if shape.value("attention.causal") is False else ""


def looped(shape: Shape) -> str:
    return "its layers are run several times over" if shape.integer("num_loops", 1) > 1 else ""


def banked(shape: Shape) -> str:
    block = shape.integer("attn_res.block_size")
    return "" if shape.n_layers <= block or not block else "its layers look back at earlier states"
