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
    """At most `capacity` frames; `put` blocks beyond that. Filled by one thread and iterated by one.

    While there is room, handing a frame over takes no lock.
    """

    def __init__(self, form: FrameFormat, capacity: int) -> None:
        self._form = form
        self._capacity = capacity
        self._queue: SimpleQueue[Frame | None] = SimpleQueue()
        self._room = threading.Condition()
        self._waiting = 0  # for room
        self._ended: EdgedError | None = None
        self._dropped = False
        self.done = threading.Event()  # the iteration is over
        self.bytes_sent: dict[int, int] = defaultdict(int)

    def put(self, frame: Frame) -> None:
        """Raises RingBrokenError where the outbox has ended, FrameError where the frame does not fit."""
        self._form.check_frame(frame)
        if self._queue.qsize() >= self._capacity:
            with self._room:
                self._waiting += 1
                self._room.wait_for(lambda: self._ended or self._queue.qsize() < self._capacity)
                self._waiting -= 1
        if self._ended is not None:
            raise RingBrokenError(self._ended.message)
        self._queue.put(frame)

    def finish(self, reason: EdgedError) -> None:
        """No more frames; the iteration ends after those that wait."""
        with self._room:
            if self._ended is not None:
                return
            self._ended = reason
            self._queue.put(None)
            self._room.notify_all()

    def drop(self, reason: EdgedError) -> None:
        """No more frames, and those that wait are dropped."""
        self._dropped = True
        self.finish(reason)

    def __iter__(self) -> Iterator[bytes]:
        try:
            while (frame := self._queue.get()) is not None and not self._dropped:
                raw = encode(frame, self._form)
                self.bytes_sent[frame.hop] += len(raw)
                if self._waiting:
                    with self._room:
                        self._room.notify_all()
                yield raw
        finally:
            self.done.set()
