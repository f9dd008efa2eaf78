"""One request's tokens and how far the ring has come with them. Pure: no clock, no ring.

The shape rule, on which bit-for-bit equal answers rest: in which micro-batch a position is computed
depends on nothing but the request itself. A prompt is computed in chunks on the grid 0, n, 2n, ...
(n = n_ubatch, the last chunk may be shorter), every generated token in a micro-batch of its own, and no
micro-batch holds tokens of two sequences. So neither other requests, nor a reused prefix, nor (for answers
that are not too long, see `Sequence.next_step`) a replay on a new ring changes what a kernel sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Phase(Enum):
    WAITING = "waiting"  # has no slot
    PREFILL = "prefill"  # prompt, or everything so far after a switch of rings
    DECODE = "decode"  # one token at a time, each depending on the one before


@dataclass(frozen=True, slots=True)
class Step:
    """Positions [start, end) of one sequence as one micro-batch."""

    sequence: int
    slot: int
    start: int
    end: int
    wants_logits: bool  # of the last position


@dataclass(slots=True, eq=False)
class Sequence:
    """`tokens` is the prompt with what has been generated; positions are indices into it."""

    id: int
    tokens: list[int]
    prompt_length: int
    slot: int | None = None
    sent: int = 0  # positions handed to the ring, or found in the slot
    confirmed: int = 0  # positions that every hop has computed
    served: int = 0  # when it was last given a micro-batch, for fairness

    @property
    def phase(self) -> Phase:
        if self.slot is None:
            return Phase.WAITING
        decoding = len(self.tokens) > self.prompt_length and self.sent >= len(self.tokens) - 1
        return Phase.DECODE if decoding else Phase.PREFILL

    @property
    def ready(self) -> bool:
        """Whether there are tokens that the ring has not been given."""
        return self.slot is not None and self.sent < len(self.tokens)

    def next_step(self, n_ubatch: int, exact_replay: int) -> Step:
        """The next micro-batch; only if `ready`.

        More than exact_replay tokens generated before a switch of rings give up the shape rule: they
        are computed in chunks like a prompt, faster but with results that differ in the last bits.
        """
        assert self.slot is not None and self.sent < len(self.tokens)
        generated = len(self.tokens) - self.prompt_length
        chunked = self.prompt_length if generated <= exact_replay else len(self.tokens)
        next_on_grid = (self.sent // n_ubatch + 1) * n_ubatch
        end = min(next_on_grid, chunked) if self.sent < chunked else self.sent + 1
        return Step(self.id, self.slot, self.sent, end, wants_logits=end == len(self.tokens))

    def place(self, slot: int, reused: int) -> None:
        """Start computing in `slot`, whose first `reused` positions are there already."""
        self.slot = slot
        self.sent = self.confirmed = reused

    def displace(self) -> None:
        """Back to waiting, nothing computed."""
        self.slot = None
        self.sent = self.confirmed = 0

    def reusable(self, n_ubatch: int) -> list[int]:
        """Tokens of the whole prompt chunks computed so far: what a later request may build on."""
        whole = min(self.confirmed, self.prompt_length) // n_ubatch * n_ubatch
        return self.tokens[:whole]
