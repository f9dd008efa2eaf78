"""Logits against logits, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edged.backend.window import Logits
from edged.verify.script import Frame


@dataclass(frozen=True, slots=True)
class Place:
    """Where two runs part: in frame number `frame` of the script, at a sequence's position."""

    frame: int
    sequence: int
    position: int


class Comparison:
    """Frames of logits, one after the other, and what was seen of their differences."""

    def __init__(self) -> None:
        self.first: Place | None = None
        self.largest = 0.0  # absolute difference; infinite where only one of two values is a number
        self._frames = 0

    @property
    def exact(self) -> bool:
        return self.first is None

    def add(self, frame: Frame, expected: Logits, found: Logits) -> None:
        if expected.shape != found.shape:
            raise ValueError(f"logits of the shapes {expected.shape} and {found.shape}")
        same = _bits(expected) == _bits(found)
        if not same.all():
            row = int(np.flatnonzero(~same.all(axis=1))[0])
            if self.first is None:
                self.first = Place(self._frames, frame.seq, frame.start + frame.outputs[row])
            with np.errstate(invalid="ignore", over="ignore"):
                apart = np.abs(expected.astype(np.float64) - found)[~same]
            self.largest = max(self.largest, float(np.nan_to_num(apart, nan=np.inf).max()))
        self._frames += 1


def _bits(values: Logits) -> np.ndarray[tuple[int, ...], np.dtype[np.uint32]]:
    return np.ascontiguousarray(values).view(np.uint32)


class Telling:
    """Whether logits can show a difference at all: numbers, and not all the same."""

    def __init__(self) -> None:
        self._least, self._most = np.inf, -np.inf

    def add(self, logits: Logits) -> None:
        numbers = logits[np.isfinite(logits)]
        if numbers.size:
            self._least = min(self._least, float(numbers.min()))
            self._most = max(self._most, float(numbers.max()))

    @property
    def fault(self) -> str:
        """Why nothing can be said; "" where all is well."""
        if self._least > self._most:
            return "what it computes are not numbers"
        if self._least == self._most:
            return "all its logits are the same"
        return ""
