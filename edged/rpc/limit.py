"""A bound on calls that last, so that short ones always find a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from edged.errors import OverloadedError


class Limit:
    """At most `at_once` calls of a kind; one more is refused, not queued."""

    def __init__(self, at_once: int, what: str) -> None:
        self._free = threading.BoundedSemaphore(at_once)
        self._refusal = f"this device handles {at_once} {what} already: try again in a moment"

    @contextmanager
    def one(self) -> Iterator[None]:
        """Raises OverloadedError."""
        if not self._free.acquire(blocking=False):
            raise OverloadedError(self._refusal)
        try:
            yield
        finally:
            self._free.release()
