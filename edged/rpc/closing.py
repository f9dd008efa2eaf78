"""A channel that may be closed while other threads begin calls on it.

gRPC looks up each method on the channel without asking whether it is still there, and on a closed one that
ends the process (grpcio 1.85).
"""

from __future__ import annotations

import threading
from typing import Any

import grpc

from edged.errors import PeerLostError


class ClosableChannel(grpc.Channel):
    """As `channel`; a call begun after `close` raises PeerLostError."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._closed = False

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._looked_up(self._channel.unary_unary, args, kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._looked_up(self._channel.unary_stream, args, kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._looked_up(self._channel.stream_unary, args, kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._looked_up(self._channel.stream_stream, args, kwargs)

    def subscribe(self, callback: Any, try_to_connect: bool | None = False) -> None:
        self._channel.subscribe(callback, try_to_connect=try_to_connect)

    def unsubscribe(self, callback: Any) -> None:
        self._channel.unsubscribe(callback)

    def close(self) -> None:
        """Ends every call; idempotent."""
        with self._lock:
            self._closed = True
        self._channel.close()

    def __enter__(self) -> grpc.Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _looked_up(self, method: Any, args: Any, kwargs: Any) -> Any:
        with self._lock:
            if self._closed:
                raise PeerLostError("the connection was closed")
            return method(*args, **kwargs)
