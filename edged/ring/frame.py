"""What travels on the ring: hidden states or control, for one micro-batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edged.backend.window import Batch, Hidden, KvOp


@dataclass(frozen=True, slots=True)
class Failure:
    """A hop could not do its work; the frame goes on to the head so that the sequences end cleanly."""

    code: str
    message: str
    device: str


@dataclass(frozen=True, slots=True)
class Frame:
    """One micro-batch on its way to `hop`. KV operations are applied first, then the tokens are run.

    `hidden` has shape (batch.n_tokens, width); a pure control frame has zero tokens.
    """

    epoch: int
    hop: int
    batch_id: int
    kv_ops: tuple[KvOp, ...]
    batch: Batch
    hidden: Hidden
    failure: Failure | None = None


EMPTY_BATCH = Batch(
    seq_ids=np.empty(0, np.int32), positions=np.empty(0, np.int32), outputs=np.empty(0, np.bool_)
)
