"""From the engine's thread to one client: an unbounded queue of events, read from a thread or a loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

from edged.errors import EdgedError
from edged.serving.generation import GenerateEvent


class EventStream:
    """A Generation. The engine pushes and never waits; a reader that stops early cancels.

    `on_cancel` is called at most once, from any thread, and not after the end.
    """

    def __init__(self, on_cancel: Callable[[], None]) -> None:
        self._on_cancel = on_cancel
        self._changed = threading.Condition()
        self._events: deque[GenerateEvent | EdgedError] = deque()
        self._ended = False
        self._cancelled = False
        self._wake: Callable[[], None] | None = None

    def push(self, event: GenerateEvent) -> None:
        """From the engine; the event with a finish reason is the last."""
        self._put(event, last=event.finish_reason is not None)

    def fail(self, error: EdgedError) -> None:
        """From the engine: the reader gets `error` after the events before it."""
        self._put(error, last=True)

    def _put(self, item: GenerateEvent | EdgedError, last: bool) -> None:
        with self._changed:
            if self._ended:
                return
            self._ended = last
            self._events.append(item)
            self._changed.notify_all()
            if self._wake is not None:
                self._wake()

    def cancel(self) -> None:
        with self._changed:
            if self._ended or self._cancelled:
                return
            self._cancelled = True
        self._on_cancel()

    def __iter__(self) -> Iterator[GenerateEvent]:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._events)
                    item = self._events.popleft()
                yield _opened(item)
                if _is_last(item):
                    return
        finally:
            self.cancel()

    async def __aiter__(self) -> AsyncIterator[GenerateEvent]:
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(arrived.set)
            except RuntimeError:  # the loop was closed under its reader
                self._wake = None

        with self._changed:
            self._wake = wake
        try:
            while True:
                arrived.clear()
                while self._events:
                    item = self._events.popleft()
                    yield _opened(item)
                    if _is_last(item):
                        return
                await arrived.wait()
        finally:
            with self._changed:
                self._wake = None
            self.cancel()


def _opened(item: GenerateEvent | EdgedError) -> GenerateEvent:
    if isinstance(item, EdgedError):
        raise item
    return item


def _is_last(item: GenerateEvent | EdgedError) -> bool:
    return isinstance(item, GenerateEvent) and item.finish_reason is not None
