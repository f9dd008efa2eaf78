"""How much memory a share of a model takes on a device. One place, so that planner and status agree."""

from __future__ import annotations

from collections.abc import Sequence

from edged.planning.plan import ContextOptions, KvType
from edged.planning.profile import ModelProfile
from edged.planning.streamed import spread

# Bits per cached value, block scales included (ggml's block formats).
KV_BITS: dict[KvType, float] = {
    "f32": 32,
    "f16": 16,
    "bf16": 16,
    "q8_0": 8.5,
    "q5_1": 6,
    "q5_0": 5.5,
    "q4_1": 5,
    "q4_0": 4.5,
}

WINDOW_OVERHEAD = 6 * 2**20  # graph, scheduler and allocator of one loaded window
ACTIVATIONS_PER_TOKEN = 112  # bytes per token of a frame and per n_embd: the widest moment inside a layer


def kv_bytes_per_layer(model: ModelProfile, context: ContextOptions) -> int:
    """Bytes of KV cache that one layer keeps for all sequences of the context."""
    per_token = model.kv_bytes_per_token_layer * KV_BITS[context.kv_type] / 16
    return int(per_token * context.n_ctx * context.n_seq_max)


def window_overhead(model: ModelProfile, context: ContextOptions, *, yields_logits: bool) -> int:
    """Bytes a window takes besides weights and KV: compute buffer and bookkeeping."""
    overhead = WINDOW_OVERHEAD + context.n_ubatch * model.n_embd * ACTIVATIONS_PER_TOKEN
    if context.flash_attention == "off":  # the scores of a whole chunk, twice: before and after the softmax
        overhead += 2 * 4 * context.n_ubatch * context.n_ctx * model.n_heads
    if yields_logits:
        overhead += 4 * model.n_vocab * (context.n_ubatch + context.n_seq_max)
    return overhead


def streamed_bytes(model: ModelProfile, first: int, last: int, streamed: int) -> int:
    """Bytes of the window's layers that are read from disk for every token."""
    return sum(model.layer_bytes[first + layer] for layer in spread(last - first, streamed))


def share_bytes(
    model: ModelProfile,
    context: ContextOptions,
    windows: Sequence[tuple[int, int]],
    streamed: Sequence[int] | None = None,
    read_ahead: int = 0,
) -> int:
    """Bytes of memory a device needs for `windows`, each [first, last).

    streamed: for each window, how many of its layers are streamed (none by default); read_ahead: how many
    such layers the device's buffer holds.
    """
    total = largest = 0
    for (first, last), count in zip(windows, streamed or [0] * len(windows), strict=True):
        ends = last == model.n_layers
        total += sum(model.layer_bytes[first:last]) + (last - first) * kv_bytes_per_layer(model, context)
        if count:
            total -= streamed_bytes(model, first, last, count)
            largest = max(largest, *model.layer_bytes[first:last])
        total += window_overhead(model, context, yields_logits=ends)
        total += model.output_memory if ends else 0
    return total + read_ahead * largest
