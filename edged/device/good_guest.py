"""A good guest on the machine: layers make room when other programs take memory for good, and return later.

Why for good: a program that starts takes memory for moments, and moving layers costs the disk's time. But
when next to nothing is left, nobody waits.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

LOOK_S = 0.1  # between two looks at the memory
SHORT_LOOKS = 20  # so many in a row have to be short of memory
AMPLE_LOOKS = 300  # and so many in a row have to have enough to take layers back
FALL_LOOKS = 8  # by which it is judged how fast memory falls
AHEAD_LOOKS = 20  # layers need a moment to go: what will be gone by then counts as gone
LOW_SHARE = 0.05  # of the memory that this process may use: so much should stay free
MOST_LOW = 512 * 2**20  # bytes; a large machine needs no more than that either
MIB = 2**20


class Layers(Protocol):
    """What can give memory up and take it back: see LayerKeeper."""

    def give_up(self, wanted: int) -> int: ...
    def take_back(self, room: int) -> int: ...


class MemoryJudge:
    """Decides from looks at the available memory, one after the other. Pure: no clock, no system."""

    def __init__(self, low: int) -> None:
        """low: bytes that should stay available."""
        self._low = low
        self._looks: deque[int] = deque(maxlen=AMPLE_LOOKS)
        self._left: deque[int] = deque(maxlen=1 + FALL_LOOKS)  # by others

    def look(self, available: int, own: int) -> int:
        """Bytes to give up now (positive), or that may be taken back (negative), or 0. `own`: that this
        process has taken itself.

        Given up is as much as brings back twice `low`; taken back only what leaves three times `low`. Memory
        that others take more and more of counts as what it will be, once there is not much more than `low`
        any more; what this process takes, as planned, comes to an end.
        """
        self._looks.append(available)
        self._left.append(available + own)
        recent = list(self._looks)[-SHORT_LOOKS:]
        foreseen = self._foreseen(available) if available < 2 * self._low else available
        if foreseen < self._low // 2 or (len(recent) == SHORT_LOOKS and max(recent) < self._low):
            self._looks.clear()
            self._left.clear()
            return 2 * self._low - foreseen
        if len(self._looks) == AMPLE_LOOKS and (room := min(self._looks) - 3 * self._low) > 0:
            self._looks.clear()
            return -room
        return 0

    def _foreseen(self, available: int) -> int:
        """What will be available soon if others go on, by steps; one step alone tells nothing."""
        left = self._left
        steps = sum(after < before for before, after in pairwise(left))
        fall = max(0, left[0] - left[-1]) if steps > 1 else 0
        return max(available - fall * AHEAD_LOOKS // max(1, len(left) - 1), -2 * self._low)


class GoodGuest:
    """A thread that looks at the memory and moves layers. `say` tells the user in plain words."""

    def __init__(
        self,
        layers: Layers,
        total: int,
        available: Callable[[], int],
        own: Callable[[], int],
        say: Callable[[str], None],
    ) -> None:
        """total: bytes that this process may use. Asked often: available, bytes that are free of these; own,
        bytes that it has taken.
        """
        self._layers = layers
        self._available = available
        self._own = own
        self._say = say
        self._judge = MemoryJudge(min(MOST_LOW, int(total * LOW_SHARE)))
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="good-guest")
        self._thread.start()

    def close(self) -> None:
        """Ends the thread; idempotent."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_S):
            verdict = self._judge.look(self._available(), self._own())
            if verdict > 0 and (freed := self._layers.give_up(verdict)) > 0:
                self._say(
                    f"memory is short: {freed / MIB:.0f} MiB of layers are read from disk for every token now"
                )
            elif verdict < 0 and (taken := self._layers.take_back(-verdict)) > 0:
                self._say(f"{taken / MIB:.0f} MiB of layers are back in memory")
