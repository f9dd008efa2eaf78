"""A bound on what answers and does not get on: heartbeats notice silence, not standing still."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Self

LOOKS = 8  # within the time allowed


class Watchdog:
    """Calls `bite` once when nothing was fed to it for `seconds` (an eighth less where it was idle before).

    From construction until `close`, on a thread of its own. While `idle` says so, nothing is expected.
    """

    def __init__(
        self, name: str, seconds: float, bite: Callable[[], None], idle: Callable[[], bool] = lambda: False
    ) -> None:
        self._seconds = seconds
        self._bite = bite
        self._idle = idle
        self._fed = time.monotonic()
        self._over = threading.Event()
        self.has_bitten = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=False)
        self._thread.start()

    def feed(self) -> None:
        """Something got on. Costs next to nothing; any thread."""
        self._fed = time.monotonic()

    def call_off(self) -> None:
        """No bite from now on, unless it is under way. Never blocks."""
        self._over.set()

    def close(self) -> None:
        """Also ends the thread, where it is not the calling one. Idempotent."""
        self.call_off()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while not self._over.wait(self._seconds / LOOKS):
            if self._idle():
                self.feed()
            elif time.monotonic() - self._fed >= self._seconds:
                self.has_bitten = True
                self._bite()
                return
