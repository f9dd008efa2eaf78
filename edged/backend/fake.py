"""A window without llama.cpp, for tests of the ring and the scheduler: small, deterministic, pure numpy.

Like the real one, it remembers what each sequence fed it. A state depends on its token, its position and
everything its sequence holds before it, layer by layer, so that a wrong order, a forgotten KV operation or
a mixed-up sequence changes the logits; how the layers are cut into windows, how a prompt is cut into
batches and which sequence id a request has do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from edged.backend.window import Batch, Hidden, KvOp, Logits, Tokens, WindowMemory
from edged.errors import WindowError
from edged.planning.plan import ContextOptions

WIDTH = 8
N_VOCAB = 64

_Floats = npt.NDArray[np.float32]


@cache
def _table(seed: int) -> _Floats:
    """A fixed matrix of (N_VOCAB, WIDTH)."""
    return np.random.default_rng(seed).standard_normal((N_VOCAB, WIDTH)).astype(np.float32)


class _Layer:
    """One layer's memory: for each sequence, what it was fed at each position."""

    def __init__(self, index: int, n_seq_max: int) -> None:
        self._turn = np.float32(0.3 + 0.1 * (index % 7))
        self.cells: list[dict[int, _Floats]] = [{} for _ in range(n_seq_max)]

    def compute(self, seq: int, position: int, state: _Floats) -> _Floats:
        self.cells[seq][position] = state
        seen = np.zeros(WIDTH, np.float32)
        for at, past in self.cells[seq].items():
            seen += np.roll(past, at % WIDTH) * np.float32(1 / (1 + position - at))
        mixed: _Floats = np.tanh(state + self._turn * seen + np.sin(np.float32(position + 1)))
        return mixed.astype(np.float32)


class FakeWindow:
    """Layers [first, last) of a made-up model of `n_layers`; the same protocol and errors as NativeWindow."""

    def __init__(
        self, first: int, last: int, n_layers: int, context: ContextOptions, recurrent: bool = False
    ) -> None:
        if not 0 <= first < last <= n_layers:
            raise WindowError("a window needs at least one layer")
        self._first, self._last, self._ends = first, last, last == n_layers
        self._context = context
        self._recurrent = recurrent
        self._layers: list[_Layer] | None = [_Layer(i, context.n_seq_max) for i in range(first, last)]

    @property
    def first(self) -> int:
        return self._first

    @property
    def last(self) -> int:
        return self._last

    @property
    def width(self) -> int:
        return WIDTH

    @property
    def memory(self) -> WindowMemory:
        n_layers = self._last - self._first
        cells = n_layers * self._context.n_ctx * self._context.n_seq_max
        return WindowMemory(weights=4 * n_layers, kv=4 * WIDTH * cells, compute=4 * WIDTH)

    def run(self, batch: Batch, inputs: Tokens | Hidden) -> Hidden:
        self._open()
        if self._ends:
            raise WindowError("the window that ends the model yields logits: use run_last")
        return self._compute(batch, inputs)

    def run_last(self, batch: Batch, inputs: Tokens | Hidden) -> Logits:
        self._open()
        if not self._ends:
            raise WindowError("only the window that ends the model yields logits: use run")
        states = self._compute(batch, inputs)[batch.outputs]
        return (
            np.stack([_table(2) @ state for state in states])
            if len(states)
            else np.empty((0, N_VOCAB), np.float32)
        )

    def _compute(self, batch: Batch, inputs: Tokens | Hidden) -> Hidden:
        self._check(batch, inputs)
        states = np.empty((batch.n_tokens, WIDTH), np.float32)
        for row, (seq, position) in enumerate(
            zip(batch.seq_ids.tolist(), batch.positions.tolist(), strict=True)
        ):
            state = _table(1)[inputs[row]] if self._first == 0 else inputs[row].astype(np.float32)
            for layer in self._open():
                state = layer.compute(seq, position, state)
            states[row] = state
        return states

    def apply(self, op: KvOp) -> bool:
        self._open()
        match op.kind:
            case "remove":
                return self._remove(self._sequence(op.seq), op.p0, op.p1)
            case "copy":
                self._copy(self._sequence(op.seq), self._sequence(op.target))
            case "keep":
                kept = self._sequence(op.seq)
                for other in range(self._context.n_seq_max):
                    if other != kept:
                        self._forget(other)
            case "clear":
                for seq in range(self._context.n_seq_max):
                    self._forget(seq)
            case _:
                raise WindowError(f"unknown KV operation {op.kind!r}")
        return True

    def cancel(self) -> None:
        """A run takes no time here."""

    def stream(self, layers: Sequence[int], spare: int = 0) -> None:
        """Nothing is on disk here; only the numbers are looked at."""
        if spare < 0:
            raise WindowError("no window can keep less than nothing in memory")
        for layer in layers:
            if not 0 <= layer < len(self._open()):
                raise WindowError(f"the window has no layer {layer} to be streamed")

    def close(self) -> None:
        self._layers = None

    def _open(self) -> list[_Layer]:
        if self._layers is None:
            raise WindowError("the window is closed")
        return self._layers

    def _next_position(self, seq: int) -> int:
        return max(self._open()[0].cells[seq], default=-1) + 1

    def _forget(self, seq: int) -> None:
        for layer in self._open():
            layer.cells[seq].clear()

    def _remove(self, seq: int, p0: int, p1: int) -> bool:
        if p0 < 0 or (p1 != -1 and p1 < p0):
            raise WindowError(f"cannot remove positions {p0} to {p1}")
        end = self._next_position(seq)
        last = end if p1 == -1 else min(p1, end)
        if p0 >= last:
            return True
        if self._recurrent and not (p0 == 0 and last == end):
            return False
        for layer in self._open():
            for position in range(p0, last):
                layer.cells[seq].pop(position, None)
        return True

    def _copy(self, seq: int, target: int) -> None:
        for layer in self._open():
            layer.cells[target] = dict(layer.cells[seq])

    def _sequence(self, seq: int) -> int:
        if not 0 <= seq < self._context.n_seq_max:
            raise WindowError(f"sequence {seq} is not between 0 and {self._context.n_seq_max - 1}")
        return seq

    def _check(self, batch: Batch, inputs: Tokens | Hidden) -> None:
        arrays = (batch.seq_ids, batch.positions, batch.outputs, inputs)
        if not all(isinstance(array, np.ndarray) for array in arrays):
            raise WindowError("a batch and its inputs must be numpy arrays")
        _expect("seq_ids", batch.seq_ids, np.int32, "int32, one per token", 1)
        _expect("positions", batch.positions, np.int32, "int32, one per token", 1)
        _expect("outputs", batch.outputs, np.bool_, "bool, one per token", 1)
        takes_tokens = self._first == 0
        if takes_tokens:
            _expect("inputs", inputs, np.int32, "int32, one token id per row", 1)
        else:
            _expect("inputs", inputs, np.float32, "float32, one hidden state per row", 2)
        n_tokens = batch.n_tokens
        if len(batch.positions) != n_tokens or len(batch.outputs) != n_tokens:
            raise WindowError("a batch needs as many positions and output flags as sequence ids")
        if len(inputs) != n_tokens:
            raise WindowError(f"a batch needs one {'token' if takes_tokens else 'hidden state'} per row")
        if n_tokens > self._context.n_ubatch:
            raise WindowError(
                f"a batch of {n_tokens} tokens, where at most {self._context.n_ubatch} are allowed"
            )
        self._check_positions(batch)
        if takes_tokens:
            for row, token in enumerate(inputs.tolist()):
                if not 0 <= token < N_VOCAB:
                    raise WindowError(f"token {token} is not between 0 and {N_VOCAB - 1} (row {row})")
        elif inputs.shape[1] != WIDTH:
            raise WindowError(f"hidden states must have {WIDTH} values per token")
        elif not np.isfinite(inputs).all():
            raise WindowError("a hidden state has a value that is not finite")

    def _check_positions(self, batch: Batch) -> None:
        following: dict[int, int] = {}
        for row, (seq, position) in enumerate(
            zip(batch.seq_ids.tolist(), batch.positions.tolist(), strict=True)
        ):
            expected = following.get(seq, self._next_position(self._sequence(seq)))
            if position != expected:
                raise WindowError(
                    f"sequence {seq} goes on at position {expected}, not {position} (row {row})"
                )
            if position >= self._context.n_ctx:
                raise WindowError(f"sequence {seq} is full: the context has {self._context.n_ctx} positions")
            following[seq] = position + 1


def _expect(name: str, array: npt.NDArray[np.generic], dtype: type, expected: str, n_dims: int) -> None:
    if array.dtype != dtype or array.ndim != n_dims or not array.flags.c_contiguous:
        raise WindowError(f"{name} must be a contiguous array of {expected}")
