"""How a plan keeps its context: chunks, flash attention, and the longest context that memory has room for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from edged.errors import PlanError
from edged.planning.plan import ContextOptions, Plan

SHORTEST = 512  # positions; below this a chat is no use
CHUNK_ALONE = 128  # prompt tokens per batch on one device: as fast as more, with less memory for attention
CHUNK_IN_RING = 32  # few, so that all devices soon have work; without flash attention no slower per token


def for_ring(wish: ContextOptions) -> ContextOptions:
    """`wish` as a ring of several devices keeps it."""
    return decided(wish).model_copy(update={"n_ubatch": min(wish.n_ubatch, CHUNK_IN_RING)})


def decided(wish: ContextOptions) -> ContextOptions:
    """`wish` with flash attention on or off.

    On CPUs it is off: there it is slower for single tokens after long prompts, and for chunks of fewer than
    64; and its results depend on the number of threads. A quantised KV cache demands it.
    """
    if wish.flash_attention != "auto":
        return wish
    quantised = wish.kv_type not in ("f32", "f16", "bf16")
    return wish.model_copy(update={"flash_attention": "on" if quantised else "off"})


def with_longest_context(wish: ContextOptions, plan_with: Callable[[ContextOptions], Plan]) -> Plan:
    """The plan for `wish`, or for the next smaller context that fits. Raises the wish's own PlanError."""
    refusal: PlanError | None = None
    for context in _smaller(wish):
        try:
            return plan_with(context)
        except PlanError as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def _smaller(wish: ContextOptions) -> Iterator[ContextOptions]:
    """Fewer sequences first: one long conversation is worth more than many short ones."""
    n_seq_max, n_ctx = wish.n_seq_max, wish.n_ctx
    yield wish
    while n_seq_max > 1:
        n_seq_max = n_seq_max // 2
        yield wish.model_copy(update={"n_seq_max": n_seq_max})
    while n_ctx // 2 >= SHORTEST:
        n_ctx = n_ctx // 2
        yield wish.model_copy(update={"n_seq_max": n_seq_max, "n_ctx": n_ctx})
