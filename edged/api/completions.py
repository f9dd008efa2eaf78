"""The completions of one HTTP request: they are queued, read and cancelled together."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from types import TracebackType

from edged.api.metrics import Stopwatch
from edged.api.queueing import QueueingThreads
from edged.errors import RingError
from edged.serving.generation import GenerateEvent, GenerateRequest, Generation, Generator

BUFFERED_EVENTS = 32  # between the head and a client that reads slowly

Item = tuple[int, GenerateEvent]


class Completions:
    """Runs `requests` side by side and yields their events as (index, event) in order of arrival.

    All are queued, or none. Use as an async context manager: entering it begins, leaving it cancels what
    still runs.
    """

    def __init__(
        self,
        generator: Generator,
        threads: QueueingThreads,
        requests: Sequence[GenerateRequest],
        watch: Stopwatch,
    ) -> None:
        self._generator = generator
        self._threads = threads
        self._requests = tuple(requests)
        self._watch = watch
        self._items: asyncio.Queue[Item | Exception] = asyncio.Queue(BUFFERED_EVENTS)
        self._task: asyncio.Task[None] | None = None
        self._failure: Exception | None = None
        self._lock = threading.Lock()  # `_generations` and `_cancelled`: also used by the queueing thread
        self._generations: list[Generation] = []
        self._cancelled = False
        self._finished: set[int] = set()

    def __len__(self) -> int:
        return len(self._requests)

    async def __aenter__(self) -> Completions:
        self._task = asyncio.create_task(self._run(), name="completions")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def next(self) -> Item:
        """The next event of any. Raises what queueing or the first to fail raised, or the error of `fail`."""
        item = await self._items.get()
        if self._failure is not None:
            raise self._failure
        if isinstance(item, Exception):
            raise item
        return item

    def cancel(self) -> None:
        """Free all sequences that are not finished, at once; idempotent, from any thread."""
        with self._lock:
            self._cancelled = True
            running = [
                generation
                for index, generation in enumerate(self._generations)
                if index not in self._finished
            ]
        for generation in running:
            generation.cancel()

    def fail(self, error: Exception) -> None:
        """Cancel, and let the reader see `error` next instead of what was still waiting for it."""
        self.cancel()
        self._failure = error
        while not self._items.empty():
            self._items.get_nowait()
        self._items.put_nowait(error)

    async def _run(self) -> None:
        try:
            await self._threads.submit(self._queue_all)
        except Exception as error:  # noqa: BLE001 - raised again where the events are read
            await self._items.put(error)
        else:
            await asyncio.gather(*(self._pump(*numbered) for numbered in enumerate(self._generations)))

    def _queue_all(self) -> None:
        for request in self._requests:
            generation = self._generator.generate(request)
            with self._lock:
                self._generations.append(generation)
                cancelled = self._cancelled
            if cancelled:  # the client went away meanwhile
                generation.cancel()
                return

    async def _pump(self, index: int, generation: Generation) -> None:
        lap = self._watch.lap()
        try:
            async for event in generation:
                lap.saw(event)
                if event.finish_reason is not None:
                    self._finished.add(index)
                await self._items.put((index, event))
            if index not in self._finished:
                raise RingError("the answer broke off")
        except Exception as error:  # noqa: BLE001 - raised again where the events are read
            await self._items.put(error)
