"""gRPC on other threads than the one that Ctrl-C reaches.

Python raises KeyboardInterrupt between any two steps of the main thread. Between two of gRPC's own it leaves
a lock that nobody releases or a call that nobody ends, and whoever closes the channel waits for it without
end. So a command line's main thread waits at a queue, and the calls are made on threads of their own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import Protocol, TypeVar

T = TypeVar("T")


class Calls(Protocol):
    """Where the calls of a client are made."""

    def once(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises."""
        ...

    def each(self, answers: Iterable[T]) -> Iterator[T]:
        """The answers of a stream as they come. Whoever stops early cancels the stream."""
        ...


class Here:
    """In the calling thread."""

    def once(self, work: Callable[[], T]) -> T:
        return work()

    def each(self, answers: Iterable[T]) -> Iterator[T]:
        return iter(answers)


class Apart:
    """In a thread per call. A KeyboardInterrupt ends the waiting; the call ends with its channel at last."""

    def once(self, work: Callable[[], T]) -> T:
        return next(self.each(_one(work)))

    def each(self, answers: Iterable[T]) -> Iterator[T]:
        arrived: SimpleQueue[tuple[T] | BaseException | None] = SimpleQueue()

        def pump() -> None:
            try:
                for answer in answers:
                    arrived.put((answer,))
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
                arrived.put(error)
            else:
                arrived.put(None)

        threading.Thread(target=pump, name="front-door-call", daemon=True).start()
        while (item := arrived.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0]


def _one(work: Callable[[], T]) -> Iterator[T]:
    yield work()
