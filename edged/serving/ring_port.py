"""What the engine needs of a ring: somewhere to submit micro-batches, and results that come back.

A single window in this process and a ring of many devices look the same from here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from edged.backend.window import Batch, KvOp, Logits, Tokens
from edged.ring.frame import Failure

OnResult = Callable[[int, Logits | None, Failure | None], None]
"""(batch_id, logits (n_outputs, n_vocab) float32, failure): called once per submitted batch, in the order of
submission, from any thread, and must return at once. `Engine.deliver` is one."""


class RingPort(Protocol):
    """Takes micro-batches in order. Whoever builds it hands it an `OnResult`."""

    def submit(self, batch_id: int, kv_ops: tuple[KvOp, ...], batch: Batch, tokens: Tokens) -> None:
        """Queue one micro-batch and return at once.

        Every hop applies `kv_ops`, then runs `tokens` (int32, shape (batch.n_tokens,)); both take effect
        in the order of submission. A batch without wanted logits is answered too, with no rows.
        Raises RingBrokenError if the ring is known to be gone.
        """
        ...
