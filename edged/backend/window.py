"""What the ring asks of a window, whoever computes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]  # (n_tokens,)
Hidden = npt.NDArray[np.float32]  # (n_tokens, width)
Logits = npt.NDArray[np.float32]  # (n_outputs, n_vocab)


@dataclass(frozen=True, slots=True)
class KvOp:
    """A change of KV state that every hop makes, in order with the frames.

    `remove`: forget positions [p0, p1) of `seq` (p1 -1: to the end).
    `copy`:   make `target` a copy of the whole of `seq`.
    `keep`:   forget every sequence but `seq`.
    `clear`:  forget everything.
    """

    kind: Literal["remove", "copy", "keep", "clear"]
    seq: int = 0
    target: int = 0
    p0: int = 0
    p1: int = -1


@dataclass(frozen=True, slots=True)
class Batch:
    """Tokens of one frame: which sequence, which position, and whether logits are wanted."""

    seq_ids: Tokens
    positions: Tokens
    outputs: npt.NDArray[np.bool_]  # (n_tokens,), only the last window looks at it

    @property
    def n_tokens(self) -> int:
        return int(self.seq_ids.shape[0])


@dataclass(frozen=True, slots=True)
class WindowMemory:
    """Bytes a loaded window occupies."""

    weights: int
    kv: int
    compute: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.compute


class Window(Protocol):
    """Layers [first, last) of a model with their own KV cache. One thread at a time.

    Every method raises WindowError instead of reaching an assertion in llama.cpp. After a WindowError
    from `run_*`, the window has forgotten the tokens of that batch and goes on working.
    """

    @property
    def first(self) -> int: ...
    @property
    def last(self) -> int: ...
    @property
    def width(self) -> int:
        """Floats per token of a hidden state (n_embd, for nearly all architectures)."""
        ...

    @property
    def memory(self) -> WindowMemory: ...

    def run(self, batch: Batch, inputs: Tokens | Hidden) -> Hidden:
        """The residual stream after the window's last layer. Not for the window that ends the model.

        The window that begins the model (first == 0) takes tokens, every other takes hidden states.
        """
        ...

    def run_last(self, batch: Batch, inputs: Tokens | Hidden) -> Logits:
        """Logits of the rows flagged in `batch.outputs`, in order; (0, n_vocab) where none is."""
        ...

    def apply(self, op: KvOp) -> bool:
        """Change KV state; False if this model cannot (recurrent state cannot be rolled back)."""
        ...

    def cancel(self) -> None:
        """Make the run in progress, if any, end with WindowError. From any thread."""
        ...

    def stream(self, layers: Sequence[int], spare: int = 0) -> None:
        """Change which layers (counted from the window's first) are read from disk for every run.

        `spare`: bytes of them that may stay in memory nevertheless. Results stay the same. Raises
        WindowError where a layer can be neither kept nor read.
        """
        ...

    def close(self) -> None:
        """Free everything; idempotent."""
        ...
