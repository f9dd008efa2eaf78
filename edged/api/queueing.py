"""The threads in which requests are handed to the head.

Handing over takes a moment for a long prompt, and minutes where the model has to be loaded first. So these
threads are kept apart from those that answer quick questions, and closing does not wait for them without end.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from collections.abc import Callable

logger = logging.getLogger(__name__)


class QueueingThreads:
    """At most `most` at once; they start as they are needed."""

    def __init__(self, most: int) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(most, thread_name_prefix="edged-http-queue")
        self._running: set[concurrent.futures.Future[None]] = set()

    def submit(self, work: Callable[[], None]) -> asyncio.Future[None]:
        """From a loop; the future raises what `work` raises."""
        future = self._pool.submit(work)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return asyncio.wrap_future(future)

    def close(self, patience_s: float) -> None:
        """Joins the threads; one that is still busy after `patience_s` ends when the head lets go of it."""
        left = concurrent.futures.wait(list(self._running), patience_s).not_done
        if left:
            logger.info("%d requests are still being handed over; they end with the head", len(left))
        self._pool.shutdown(wait=not left, cancel_futures=True)
