"""uvicorn's HTTP/1.1 protocol with what it leaves open: deadlines, a limit on connections, errors in JSON."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from edged.api.error_format import INVALID, SERVER, ApiError
from edged.api.limits import HttpLimits


class GuardedProtocol(H11Protocol):
    """One connection. A request has to arrive in `receive_s`, a reader to take something in `stall_s`."""

    limits: ClassVar[HttpLimits] = HttpLimits()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._receiving: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(ApiError(503, "too many connections", kind=SERVER, code="too_many_connections"))
            return
        self._receiving = self.loop.call_later(self.limits.receive_s, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        theirs = self.conn.their_state
        unfinished = theirs is h11.SEND_BODY or (theirs is h11.IDLE and bool(self.conn.trailing_data[0]))
        if not unfinished and self._receiving is not None:
            self._receiving.cancel()
            self._receiving = None
        elif unfinished and self._receiving is None:
            self._receiving = self.loop.call_later(self.limits.receive_s, self._too_slow)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        super().resume_writing()

    def shutdown(self) -> None:
        if self.conn.our_state is h11.ERROR or self.conn.their_state is h11.ERROR:
            self.transport.close()
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn for what is no HTTP."""
        self._refuse(ApiError(400, f"{msg.rstrip('.')}, or its headers are too long", code="bad_http"))

    def _too_slow(self) -> None:
        self._receiving = None
        self._refuse(ApiError(408, "the request took too long to arrive", kind=INVALID, code="timeout"))

    def _watch_reader(self, before: int) -> None:
        """Look again in `stall_s`: by then less than `before` bytes must wait for the reader."""
        self._stalled = self.loop.call_later(self.limits.stall_s, self._judge_reader, before)

    def _judge_reader(self, before: int) -> None:
        waiting = self.transport.get_write_buffer_size()
        if waiting >= before:
            self.transport.abort()
        else:
            self._watch_reader(waiting)

    def _stop_timers(self) -> None:
        for timer in (self._receiving, self._stalled):
            if timer is not None:
                timer.cancel()
        self._receiving = self._stalled = None

    def _refuse(self, error: ApiError) -> None:
        """Write `error` and close; where an answer is under way already, only close."""
        self._stop_timers()
        if self.cycle is not None and not self.cycle.response_complete:
            # The route may still wait for the rest of the body: it is told that there is none.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        body = error.body
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        head = h11.Response(status_code=error.status, headers=headers)
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def protocol_with(limits: HttpLimits) -> type[GuardedProtocol]:
    """uvicorn builds its protocols itself, so the limits travel in the class."""
    return type("LimitedProtocol", (GuardedProtocol,), {"limits": limits})
