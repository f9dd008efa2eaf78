"""A window of a toy model: small, but with a KV cache that makes order and positions matter."""

from __future__ import annotations

import numpy as np

from edged.backend.window import Batch, Hidden, KvOp, Logits, Tokens, WindowMemory
from edged.errors import WindowError
from edged.planning.plan import ContextOptions, Hop, Plan, WireType

WIDTH = 24
N_VOCAB = 11

_EMBEDDING = np.random.default_rng(1).standard_normal((N_VOCAB, WIDTH)).astype(np.float32)
_HEAD = np.random.default_rng(2).standard_normal((WIDTH, N_VOCAB)).astype(np.float32)


class ToyWindow:
    """Layers [first, last): each mixes a token with everything its sequence has cached."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.cache: dict[int, list[list[np.ndarray]]] = {}  # sequence -> layer -> position -> vector
        self.applied: list[KvOp] = []
        self.can_remove = True

    width = WIDTH
    memory = WindowMemory(0, 0, 0)

    def run(self, batch: Batch, inputs: Tokens | Hidden) -> Hidden:
        rows = [self._token(*row) for row in self._rows(batch, inputs)]
        return np.array(rows, np.float32).reshape(-1, WIDTH)

    def run_last(self, batch: Batch, inputs: Tokens | Hidden) -> Logits:
        hidden = self.run(batch, inputs)
        rows = [row @ _HEAD for row, wanted in zip(hidden, batch.outputs, strict=True) if wanted]
        return np.array(rows, np.float32).reshape(-1, N_VOCAB)

    def apply(self, op: KvOp) -> bool:
        self.applied.append(op)
        if op.kind == "remove":
            for layer in self.cache.get(op.seq, []):
                del layer[op.p0 : None if op.p1 < 0 else op.p1]
            return self.can_remove
        if op.kind == "copy":
            self.cache[op.target] = [list(layer) for layer in self.cache.get(op.seq, self._empty())]
        elif op.kind == "keep":
            self.cache = {seq: layers for seq, layers in self.cache.items() if seq == op.seq}
        else:
            self.cache.clear()
        return True

    def close(self) -> None:
        self.cache.clear()

    def _empty(self) -> list[list[np.ndarray]]:
        return [[] for _ in range(self.first, self.last)]

    def _rows(self, batch: Batch, inputs: Tokens | Hidden):
        vectors = _EMBEDDING[inputs] if self.first == 0 else inputs
        return zip(batch.seq_ids.tolist(), batch.positions.tolist(), vectors, strict=True)

    def _token(self, seq: int, position: int, vector: np.ndarray) -> np.ndarray:
        layers = self.cache.setdefault(seq, self._empty())
        for index, layer in enumerate(layers):
            if position != len(layer):
                raise WindowError(f"position {position} of sequence {seq}, but {len(layer)} are cached")
            layer.append(vector)
            past = np.sum(layer, axis=0, dtype=np.float32)
            vector = np.tanh(past * np.float32(0.3) + np.float32(self.first + index) * vector)
        return vector


def plan_of(*hops: tuple[str, int], epoch: int = 1, n_ubatch: int = 16, wire: WireType = "f32") -> Plan:
    """A plan from devices and numbers of layers."""
    at, places = 0, []
    for device, layers in hops:
        places.append(Hop(device=device, first=at, last=at + layers))
        at += layers
    context = ContextOptions(n_ctx=256, n_seq_max=32, n_ubatch=n_ubatch, wire_type=wire)
    return Plan(epoch=epoch, model="toy", n_layers=at, hops=tuple(places), context=context)


def batch_of(*rows: tuple[int, int], outputs: bool | tuple[bool, ...] = True) -> Batch:
    """A batch from (sequence, position) pairs."""
    seqs, positions = zip(*rows, strict=True)
    flags = np.full(len(rows), outputs) if isinstance(outputs, bool) else np.array(outputs)
    return Batch(np.array(seqs, np.int32), np.array(positions, np.int32), flags)


def run_of(seq: int, start: int, n: int) -> Batch:
    """`n` consecutive positions of one sequence, logits of the last."""
    flags = tuple([False] * (n - 1) + [True])
    return batch_of(*((seq, start + i) for i in range(n)), outputs=flags)


def tokens_of(*ids: int) -> Tokens:
    return np.array(ids, np.int32)
