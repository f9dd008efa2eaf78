"""A check that a test ends what it began."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

ENDING_S = 5.0  # gRPC's own threads end a moment after their channel is closed


@contextmanager
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + ENDING_S
    for thread in set(threading.enumerate()) - before:
        thread.join(max(0.0, deadline - time.monotonic()))
    left = sorted(thread.name for thread in set(threading.enumerate()) - before if thread.is_alive())
    assert not left, f"threads left behind: {left}"
