"""The table by which a unigram tokenizer normalises text: checked as a whole, since a fault in it ends the
process only for the text that meets it.

The table is a double array of 32-bit nodes, after Kanda (2018), "Space- and Time-Efficient String
Dictionaries", as SentencePiece stores it: the base of a node's children in bits 10 to 30 (shifted by 8 where
bit 9 is set), its own label in bits 0 to 7, and in bit 8 whether a text ends there; then the node at the base
holds, in bits 0 to 30, where the replacement begins in the texts behind the table.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_Nodes = npt.NDArray[np.uint32]

_AT_ONCE = 4096  # nodes looked at in one step
_LABELS = np.arange(1, 256, dtype=np.uint32)
_FAULT = "its table of characters to normalise is broken"


def charsmap_fault(raw: bytes) -> str | None:
    """What is wrong with a table (`tokenizer.ggml.precompiled_charsmap`), or None."""
    if not raw:
        return None
    size = int.from_bytes(raw[:4], "little")
    if len(raw) < 4 or 4 + size >= len(raw):
        return _FAULT
    nodes = np.frombuffer(raw, "<u4", size // 4, 4)
    texts = raw[4 + size :]
    last = texts.rfind(b"\x00")  # a replacement that begins behind it has no end
    if not len(nodes):
        return None
    return None if _sound(nodes, last) else _FAULT


def _sound(nodes: _Nodes, last: int) -> bool:
    """Whether no text leads out of the table or to a replacement that does not end."""
    seen = np.zeros(len(nodes), np.bool_)
    waiting = [_base(nodes, np.zeros(1, np.uint32))]
    while waiting:
        states = np.unique(waiting.pop())
        if (states | 0xFF >= len(nodes)).any():  # some label leads out
            return False
        states = states[~seen[states]]
        seen[states] = True
        for start in range(0, len(states), _AT_ONCE):
            children = states[start : start + _AT_ONCE, None] ^ _LABELS
            children = children[nodes[children] & 0x800000FF == _LABELS]
            if not len(children):
                continue
            following = children ^ _base(nodes, children)
            if (following >= len(nodes)).any():
                return False
            ends = nodes[children] >> 8 & 1 == 1
            if (nodes[following[ends]] & 0x7FFFFFFF > last).any():
                return False
            waiting.append(following)
    return True


def _base(nodes: _Nodes, at: _Nodes) -> _Nodes:
    packed = nodes[at]
    base: _Nodes = ((packed >> 10) << ((packed & (1 << 9)) >> 6)).astype(np.uint32)
    return base
