"""A good guest on the machine: layers make room when other programs take memory for good, and return later.

Why for good: a program that starts takes memory for moments, and moving layers costs the disk's time. But
when next to nothing is left, nobody waits.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

LOOK_S = 0.5  # between two looks at the memory
SHORT_LOOKS = 4  # so many in a row have to be short of memory
AMPLE_LOOKS = 60  # and so many in a row have to have enough to take layers back
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

    def look(self, available: int) -> int:
        """Bytes to give up now (positive), or that may be taken back (negative), or 0.

        Given up is as much as brings back twice `low`; taken back only what leaves three times `low`.
        """
        self._looks.append(available)
        recent = list(self._looks)[-SHORT_LOOKS:]
        dire = available < self._low // 2
        if dire or (len(recent) == SHORT_LOOKS and max(recent) < self._low):
            self._looks.clear()
            return 2 * self._low - available
        if len(self._looks) == AMPLE_LOOKS and (room := min(self._looks) - 3 * self._low) > 0:
            self._looks.clear()
            return -room
        return 0


class GoodGuest:
    """A thread that looks at the memory and moves layers. `say` tells the user in plain words."""

    def __init__(
        self, layers: Layers, total: int, available: Callable[[], int], say: Callable[[str], None]
    ) -> None:
        """total: bytes that this process may use; available: asked often, bytes that are free of these."""
        self._layers = layers
        self._available = available
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
            verdict = self._judge.look(self._available())
            if verdict > 0 and (freed := self._layers.give_up(verdict)) > 0:
                self._say(
                    f"memory is short: {freed / MIB:.0f} MiB of layers are read from disk for every token now"
                )
            elif verdict < 0 and (taken := self._layers.take_back(-verdict)) > 0:
                self._say(f"{taken / MIB:.0f} MiB of layers are back in memory")
