"""The KV sequences of a ring: who has which, and which prefix each still holds. Pure.

Only whole prompt chunks are kept from a finished request and reused by a later one, at the same positions
(the shape rule of `sequence.py`): an answer on a reused prefix equals the fresh one bit for bit. The last
prompt token is always computed again, since its logits are needed. A model whose state cannot be rolled
back keeps nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

import numpy as np
import numpy.typing as npt

from edged.backend.window import KvOp

_NOTHING: npt.NDArray[np.int32] = np.empty(0, np.int32)


@dataclass(slots=True)
class _Slot:
    kept: npt.NDArray[np.int32] = field(default_factory=lambda: _NOTHING)
    owner: int | None = None
    used: int = 0  # when it was last released


@dataclass(frozen=True, slots=True)
class Grant:
    """A slot for a sequence: its first `reused` positions are computed; `op` comes before the first token."""

    slot: int
    reused: int
    op: KvOp


class SlotTable:
    """`n_slots` KV sequences, each free or owned by one sequence."""

    def __init__(self, n_slots: int, n_ubatch: int, keeps_prefixes: bool) -> None:
        self._slots = [_Slot() for _ in range(n_slots)]
        self._n_ubatch = n_ubatch
        self._keeps_prefixes = keeps_prefixes
        self._clock = count(1)

    @property
    def free(self) -> int:
        return sum(slot.owner is None for slot in self._slots)

    @property
    def kept_tokens(self) -> int:
        """Positions in free slots that a request could reuse."""
        return sum(len(slot.kept) for slot in self._slots if slot.owner is None)

    def take(self, owner: int, prompt: list[int]) -> Grant | None:
        """The free slot with the longest usable prefix, among equals the one unused for longest.

        None if all are taken.
        """
        tokens = np.asarray(prompt, np.int32)
        free = [(index, slot) for index, slot in enumerate(self._slots) if slot.owner is None]
        if not free:
            return None
        reused, _, index = max((self._usable(slot, tokens), -slot.used, -i) for i, slot in free)
        index = -index
        slot = self._slots[index]
        slot.owner = owner
        slot.kept = _NOTHING
        return Grant(index, reused, KvOp("remove", seq=index, p0=reused))

    def release(self, index: int, kept: list[int]) -> KvOp:
        """Frees a slot that holds `kept` as whole prompt chunks; the op removes everything else."""
        slot = self._slots[index]
        slot.owner = None
        slot.used = next(self._clock)
        slot.kept = np.asarray(kept, np.int32) if self._keeps_prefixes else _NOTHING
        return KvOp("remove", seq=index, p0=len(slot.kept))

    def _usable(self, slot: _Slot, prompt: npt.NDArray[np.int32]) -> int:
        length = min(len(slot.kept), len(prompt) - 1)
        differing = np.flatnonzero(slot.kept[:length] != prompt[:length])
        common = int(differing[0]) if differing.size else max(length, 0)
        return common // self._n_ubatch * self._n_ubatch
