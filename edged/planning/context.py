"""The longest context that the cluster's memory has room for, no longer than asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from edged.errors import PlanError
from edged.planning.plan import ContextOptions, Plan

SHORTEST = 512  # positions; below this a chat is no use


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
