"""Which layers of a window are read from disk again for every token: spread, so that reading hides."""

from __future__ import annotations

SLOTS = 2  # of the largest tensor: one is computed with while the next one comes
READ_AHEAD = 1  # layers: it is read by single tensors, so one is computed with while others come


def spread(n_layers: int, streamed: int) -> tuple[int, ...]:
    """`streamed` of `n_layers` layers, evenly spread: while one is read, those before it are computed."""
    return tuple((index + 1) * n_layers // streamed - 1 for index in range(streamed))
