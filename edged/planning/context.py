"""How a plan keeps its context: chunks, flash attention, and the longest context that memory has room for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from edged.errors import PlanError
from edged.planning.plan import ContextOptions, Plan

SHORTEST = 512  # positions; below this a chat is no use
LEAST = 16  # positions, what ContextOptions allows
CHUNK_ALONE = 128  # prompt tokens per batch on one device: as fast as more, with less memory for attention
CHUNK_IN_RING = 16  # few, so that all devices soon have work; without flash attention no slower per token


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


def with_longest_context(
    wish: ContextOptions, n_ctx_train: int, plan_with: Callable[[ContextOptions], Plan]
) -> Plan:
    """The plan for `wish`, or for the next smaller context that fits; its `note` says if it is less.

    No context is longer than the model was trained on. Raises PlanError as the wish's own plan would.
    """
    most = most_positions(n_ctx_train)
    trained = wish if wish.n_ctx <= most else wish.model_copy(update={"n_ctx": most})
    refusal: PlanError | None = None
    for context in _smaller(trained):
        try:
            plan = plan_with(context)
        except PlanError as error:
            refusal = refusal or error
        else:
            return plan.model_copy(update={"note": _note(wish, trained, plan.context)})
    assert refusal is not None
    raise refusal


def most_positions(n_ctx_train: int) -> int:
    """The longest context of a model that was trained on so many tokens."""
    return max(n_ctx_train, LEAST)


def shortened(wished: int, trained: int) -> str:
    """What to say of a context of `trained` tokens in place of the longer one that was wished for."""
    return f"the model was trained on {trained} tokens: a request gets these, not {wished}"


def _note(wish: ContextOptions, trained: ContextOptions, given: ContextOptions) -> str:
    notes = []
    if trained.n_ctx < wish.n_ctx:
        notes.append(shortened(wish.n_ctx, trained.n_ctx))
    if (given.n_seq_max, given.n_ctx) != (trained.n_seq_max, trained.n_ctx):
        notes.append(f"memory has room for {_extent(given)} instead of {_extent(trained)}")
    return "; ".join(notes)


def _extent(context: ContextOptions) -> str:
    sequences = "1 sequence" if context.n_seq_max == 1 else f"{context.n_seq_max} sequences"
    return f"{sequences} of {context.n_ctx} tokens"


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
