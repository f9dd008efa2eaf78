"""Windows of a made-up model, plans and batches for tests of the ring."""

from __future__ import annotations

from queue import Queue

import numpy as np

from edged.backend.fake import N_VOCAB, WIDTH, FakeWindow
from edged.backend.window import Batch, KvOp, Tokens
from edged.planning.plan import ContextOptions, Hop, Plan, WireType
from edged.ring.codec import FrameFormat
from edged.ring.frame import Frame

__all__ = [
    "N_VOCAB",
    "WIDTH",
    "NotedWindow",
    "Sink",
    "batch_of",
    "plan_of",
    "run_of",
    "tokens_of",
    "windows_of",
]


class NotedWindow(FakeWindow):
    """Remembers the KV operations it was given, and shows what it caches."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.applied: list[KvOp] = []

    def apply(self, op: KvOp) -> bool:
        self.applied.append(op)
        return super().apply(op)

    @property
    def cells(self) -> list[list[dict[int, np.ndarray]]]:
        """By layer and sequence: what is cached at each position."""
        return [layer.cells for layer in self._open()]


def windows_of(plan: Plan, kind: type[NotedWindow] = NotedWindow) -> list[NotedWindow]:
    """A window for every hop."""
    return [kind(hop.first, hop.last, plan.n_layers, plan.context) for hop in plan.hops]


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


class Sink:
    """Takes the place of a head that nothing is computed on."""

    epoch = 1
    form = FrameFormat.of(plan_of(("a", 1)), WIDTH)
    frames: Queue[Frame] = Queue()

    def expects(self, sender: str, hop: int | None = None) -> bool:
        return sender == "b"

    def receive(self, frame: Frame, sender: str) -> None:
        self.frames.put(frame)

    def lost(self, sender: str, error: Exception) -> None:
        pass
