"""What an asyncio loop does with errors that nobody awaits: a line in the log, not a traceback each."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

log = logging.getLogger(__name__)

QUIET_S = 60.0  # the same error again within this time is not told


class QuietErrors:
    """For `loop.set_exception_handler`. One line per kind of error and minute; `debug` has the traceback."""

    def __init__(self, server: str) -> None:
        """`server` says in the log whose loop it is."""
        self._server = server
        self._told: dict[tuple[str, str], float] = {}

    def __call__(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        message, error = str(context.get("message", "an error")), context.get("exception")
        kind = (message, type(error).__name__)
        now = time.monotonic()
        if now - self._told.get(kind, -QUIET_S) < QUIET_S:
            return
        self._told[kind] = now
        log.error("%s: %s: %s", self._server, message, error or "no details")
        log.debug("%s: the same in full", self._server, exc_info=error)
