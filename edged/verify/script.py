"""What a verification computes: micro-batches as a ring sends them, the same for whole and cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edged.backend.window import Batch, Tokens

LEAST_TOKENS = 4
MOST_TOKENS = 4096
_ROLLED_BACK = 3  # positions forgotten at the end, and computed again with other tokens


@dataclass(frozen=True, slots=True)
class Frame:
    """`tokens` of the sequence `seq` at the positions from `start` on, computed together.

    Logits are wanted of all of them, or of the last one only, as of a prompt: then libllama's last layer
    computes a part of its rows, in another way than all.
    """

    seq: int
    start: int
    tokens: tuple[int, ...]
    last_only: bool = False

    @property
    def outputs(self) -> tuple[int, ...]:
        """The rows whose logits are wanted."""
        rows = range(len(self.tokens))
        return tuple(rows[-1:] if self.last_only else rows)

    @property
    def batch(self) -> Batch:
        count = len(self.tokens)
        flags = np.zeros(count, np.bool_)
        flags[list(self.outputs)] = True
        return Batch(
            seq_ids=np.full(count, self.seq, np.int32),
            positions=np.arange(self.start, self.start + count, dtype=np.int32),
            outputs=flags,
        )

    @property
    def ids(self) -> Tokens:
        return np.array(self.tokens, np.int32)


@dataclass(frozen=True, slots=True)
class Rollback:
    """The sequence `seq` forgets its positions from `start` on."""

    seq: int
    start: int


Step = Frame | Rollback


def make_script(n_tokens: int, n_vocab: int, chunk: int, rollback: bool) -> tuple[Step, ...]:
    """`n_tokens` of one sequence: three quarters in chunks of `chunk`, the rest one by one.

    Of every other chunk, the logits of the last token alone are wanted.
    Between its single tokens a second sequence has a short prompt and single tokens of its own. With
    `rollback` the first then forgets its last few positions and goes on with others. Token ids are random.
    """
    rng = np.random.default_rng(n_tokens)

    def frame(seq: int, start: int, count: int, last_only: bool = False) -> Frame:
        return Frame(seq, start, tuple(int(token) for token in rng.integers(0, n_vocab, count)), last_only)

    prompt = n_tokens - n_tokens // 4
    steps: list[Step] = [
        frame(0, start, min(chunk, prompt - start), last_only=start // chunk % 2 == 1)
        for start in range(0, prompt, chunk)
    ]
    beside = min(chunk, n_tokens // 4)
    steps.append(frame(1, 0, beside))
    for index, position in enumerate(range(prompt, n_tokens)):
        steps.append(frame(0, position, 1))
        if index < beside:
            steps.append(frame(1, beside + index, 1))
    if rollback:
        back = n_tokens - _ROLLED_BACK
        steps += [Rollback(0, back), frame(0, back, 1), frame(0, back + 1, min(chunk, 2))]
    return tuple(steps)


def positions_needed(script: tuple[Step, ...]) -> int:
    """The context that the longest sequence takes."""
    return max(frame.start + len(frame.tokens) for frame in frames(script))


def frames(script: tuple[Step, ...]) -> Iterator[Frame]:
    return (step for step in script if isinstance(step, Frame))


def until(script: tuple[Step, ...], frame: int) -> tuple[Step, ...]:
    """The script up to its frame of that number, which is the last one left."""
    kept: list[Step] = []
    for step in script:
        kept.append(step)
        if isinstance(step, Frame):
            if frame == 0:
                break
            frame -= 1
    return tuple(kept)
