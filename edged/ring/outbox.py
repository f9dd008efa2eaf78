"""The queue of a link: frames go in, encoded bytes come out, on the thread that sends them."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from queue import SimpleQueue

from edged.errors import EdgedError, RingBrokenError
from edged.ring.codec import FrameFormat, encode
from edged.ring.frame import Frame


class Outbox:
    """At most `capacity` frames; `put` blocks beyond that. Iterated by one thread."""

    def __init__(self, form: FrameFormat, capacity: int) -> None:
        self._form = form
        self._capacity = capacity
        self._queue: SimpleQueue[Frame | None] = SimpleQueue()
        self._room = threading.Semaphore(capacity)
        self._lock = threading.Lock()
        self._ended: EdgedError | None = None
        self._dropped = False
        self.done = threading.Event()  # the iteration is over
        self.bytes_sent: dict[int, int] = defaultdict(int)

    def put(self, frame: Frame) -> None:
        """Raises RingBrokenError where the outbox has ended, FrameError where the frame does not fit."""
        self._form.check_frame(frame)
        self._room.acquire()
        with self._lock:
            if self._ended is None:
                self._queue.put(frame)
                return
        self._room.release()
        raise RingBrokenError(self._ended.message)

    def finish(self, reason: EdgedError) -> None:
        """No more frames; the iteration ends after those that wait."""
        with self._lock:
            if self._ended is not None:
                return
            self._ended = reason
            self._queue.put(None)
        self._room.release(self._capacity)

    def drop(self, reason: EdgedError) -> None:
        """No more frames, and those that wait are dropped."""
        self._dropped = True
        self.finish(reason)

    def __iter__(self) -> Iterator[bytes]:
        try:
            while (frame := self._queue.get()) is not None and not self._dropped:
                raw = encode(frame, self._form)
                self.bytes_sent[frame.hop] += len(raw)
                yield raw
                self._room.release()
        finally:
            self.done.set()
