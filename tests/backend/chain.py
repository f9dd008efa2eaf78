"""Windows one after the other, as the ring runs them, without a ring."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edged.backend.window import Batch, KvOp, Window

Row = tuple[int, int, int]  # sequence, position, token


def batch_of(rows: Sequence[Row], outputs: bool | Sequence[bool] = True) -> Batch:
    flags = [outputs] * len(rows) if isinstance(outputs, bool) else list(outputs)
    return Batch(
        seq_ids=np.array([row[0] for row in rows], np.int32),
        positions=np.array([row[1] for row in rows], np.int32),
        outputs=np.array(flags, np.bool_),
    )


def tokens_of(rows: Sequence[Row]) -> npt.NDArray[np.int32]:
    return np.array([row[2] for row in rows], np.int32)


class Chain:
    """All windows of a model; `decode` gives the logits of the rows flagged (all by default)."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self.windows = list(windows)

    def decode(self, rows: Sequence[Row], outputs: bool | Sequence[bool] = True) -> npt.NDArray[np.float32]:
        batch = batch_of(rows, outputs)
        state: npt.NDArray[np.int32] | npt.NDArray[np.float32] = tokens_of(rows)
        for window in self.windows[:-1]:
            state = window.run(batch, state)
        return self.windows[-1].run_last(batch, state)

    def apply(self, op: KvOp) -> None:
        for window in self.windows:
            assert window.apply(op)

    def close(self) -> None:
        for window in self.windows:
            window.close()
