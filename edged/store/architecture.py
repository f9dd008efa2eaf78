"""The rules of cutting: which models may be cut at which layers, and what a window then needs changed.

`RULES` has a row for every architecture whose windows were compared with the whole model and gave the same
logits bit for bit (tests/store/test_exactness.py does so for each row). An architecture without a row runs
whole only, on one device: that is right for everything libllama loads. To add one, add a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edged.store.gguf_file import Value

MAX_LAYERS = 512  # libllama's own limit, behind an assertion
DUMMY_VOCABULARY = 32  # rows of the stand-ins in a window that neither reads nor yields tokens


@dataclass(frozen=True, slots=True)
class Rule:
    """What a cut of one architecture takes care of.

    tied_output:  libllama takes `token_embd` where `output` is absent, so the last window can hold its
                  output matrix under that name and needs no second one.
    capture:      the graph tensor with the state after the last layer, before the layer's number.
    entry_scales: metadata that scales what enters layer 0; 1 in every window but the first.
    whole_if:     metadata which, present and not zero, makes the model one that runs whole only.
    """

    tied_output: bool
    capture: str = "l_out"
    entry_scales: tuple[str, ...] = ()
    whole_if: tuple[str, ...] = ()


RULES: dict[str, Rule] = {
    "falcon": Rule(tied_output=True),
    "gptneox": Rule(tied_output=False),
    "granite": Rule(tied_output=True, entry_scales=("embedding_scale",), whole_if=("deepstack_mapping",)),
    "internlm2": Rule(tied_output=False),
    "llama": Rule(tied_output=True),
    "mistral3": Rule(tied_output=True),
    "olmo": Rule(tied_output=True),
    "olmo2": Rule(tied_output=False, whole_if=("attention.sliding_window",)),
    "phi3": Rule(tied_output=True),
    "qwen2": Rule(tied_output=True),
    "qwen2moe": Rule(tied_output=False),
    "qwen3": Rule(tied_output=True),
    "qwen3moe": Rule(tied_output=True),
    "stablelm": Rule(tied_output=False),
    "starcoder2": Rule(tied_output=True),
}

# For every row: prediction layers after the last, deepstack and pooling change what a window would be.
WHOLE_IF = ("nextn_predict_layers", "pooling_type", "router_layer")

# Tensors outside the layers that windows know how to share out; a model with others runs whole.
EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"
OUTPUT_SIDE = (OUTPUT, "output.bias", "output_norm.weight", "output_norm.bias")
SHARED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")

# Arrays that may happen to be as long as the model is deep, yet do not count layers.
_NOT_PER_LAYER = ("rope.dimension_sections", "classifier.output_labels", "rope.scaling.factors")


@dataclass(frozen=True, slots=True)
class Cuts:
    """Where a model may be cut; if nowhere, `reason` says why in words."""

    boundaries: tuple[int, ...]
    reason: str


def cuts(architecture: str, n_layers: int, metadata: Mapping[str, Value], globals_: Iterable[str]) -> Cuts:
    """The layers before which this model may be cut. `globals_`: names of tensors outside the layers."""
    rule = RULES.get(architecture)
    if rule is None:
        return Cuts((), f"models of the architecture {architecture} cannot be cut yet")
    for key in (*WHOLE_IF, *rule.whole_if):
        value = metadata.get(f"{architecture}.{key}")
        if value and value != -1:
            return Cuts((), f"a model of the architecture {architecture} with {key} cannot be cut yet")
    for key, value in metadata.items():
        # libllama takes some shapes from the first entry, and a window's first is another.
        if isinstance(value, tuple) and per_layer(architecture, key, value, n_layers) and len(set(value)) > 1:
            return Cuts((), f"models whose layers differ in {key.partition('.')[2]} cannot be cut yet")
    known = {EMBEDDING, *OUTPUT_SIDE, *SHARED}
    present = set(globals_)
    if strange := sorted(present - known):
        return Cuts((), f"it has the tensor {strange[0]}, which no rule of cutting covers")
    if EMBEDDING not in present:
        return Cuts((), f"it lacks {EMBEDDING}")
    return Cuts(tuple(range(1, n_layers)), "" if n_layers > 1 else "it has one layer only")


def per_layer(architecture: str, key: str, value: object, n_layers: int) -> bool:
    """Whether this metadata is a list with one entry per layer."""
    return (
        isinstance(value, tuple)
        and len(value) == n_layers
        and key.startswith(f"{architecture}.")
        and key.removeprefix(f"{architecture}.") not in _NOT_PER_LAYER
    )
