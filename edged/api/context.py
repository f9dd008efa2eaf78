"""What all routes of one HTTP server share."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request

from edged.api.daemon_view import DaemonView
from edged.api.limits import HttpLimits
from edged.api.metrics import Metrics
from edged.api.queueing import QueueingThreads
from edged.errors import OverloadedError
from edged.serving.generation import Generator


class ApiContext:
    def __init__(self, generator: Generator, daemon: DaemonView, limits: HttpLimits) -> None:
        self.generator = generator
        self.daemon = daemon
        self.limits = limits
        self.metrics = Metrics(daemon)
        self.closing = asyncio.Event()  # set in the server's loop when it begins to close
        self.threads = QueueingThreads(limits.completions)
        self._running = 0

    @contextmanager
    def admit(self, completions: int) -> Iterator[None]:
        """Hold places for so many completions. Raises OverloadedError if there are not enough."""
        if self._running + completions > self.limits.completions:
            raise OverloadedError(f"{self._running} completions are under way; try again in a moment")
        self._running += completions
        self.metrics.running(self._running)
        try:
            yield
        finally:
            self._running -= completions
            self.metrics.running(self._running)


def context_of(request: Request) -> ApiContext:
    context = request.app.state.context
    assert isinstance(context, ApiContext)
    return context
