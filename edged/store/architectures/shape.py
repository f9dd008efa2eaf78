"""A model as the rules of cutting see it: its hyperparameters and nothing of its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

from edged.store.gguf_file import Value

MAX_LAYERS = 512  # libllama's own limit, behind an assertion; it writes some lists as long as that

# Lists that may happen to be as long as the model is deep, yet do not count layers.
_NOT_PER_LAYER = frozenset(
    {
        "classifier.output_labels",
        "ple.head_offsets",
        "ple.head_vocab_sizes",
        "ple.layer_multipliers",
        "ple.layers",
        "rope.dimension_sections",
        "rope.scaling.factors",
    }
)


@dataclass(frozen=True, slots=True)
class Shape:
    """`n_blocks` is the file's block_count; the last of them may be prediction heads, which windows drop."""

    architecture: str
    n_layers: int
    n_blocks: int
    n_embd: int
    n_vocab: int
    metadata: Mapping[str, Value]

    def key(self, name: str) -> str:
        return f"{self.architecture}.{name}"

    def value(self, name: str) -> Value | None:
        return self.metadata.get(self.key(name))

    def integer(self, name: str, default: int = 0) -> int:
        """A count; of a list the first entry, as libllama takes it."""
        value = self.value(name)
        if isinstance(value, tuple):
            value = value[0] if value else default
        return int(value) if _is_number(value) else default

    def listed(self, name: str) -> tuple[float, ...] | None:
        """A list with one number per layer, or None where there is no such list."""
        value = self.value(name)
        if not isinstance(value, tuple) or not self.counts_layers(self.key(name), value):
            return None
        return tuple(entry if _is_number(entry) else 0.0 for entry in value)[: self.n_layers]

    def counts_layers(self, key: str, value: object) -> bool:
        """Whether this metadata is a list with one entry per layer."""
        return (
            isinstance(value, tuple)
            and len(value) in (self.n_blocks, MAX_LAYERS)
            and not key.startswith("tokenizer.")
            and key.partition(".")[2] not in _NOT_PER_LAYER
        )


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def main_layers(n_blocks: int, nextn: object) -> int:
    """Layers without the prediction heads at the end, which edged does not use."""
    if isinstance(nextn, int) and 0 < nextn < n_blocks:
        return n_blocks - nextn
    return n_blocks
