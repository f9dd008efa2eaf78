"""Services that answer with what they saw, or fail as told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from edged.errors import BY_CODE
from edged.rpc import edged_pb2, edged_pb2_grpc
from edged.rpc.server import peer_device, peer_host
from edged.rpc.status import guard


class Echo(edged_pb2_grpc.CoordinatorServicer):
    """Heartbeat says who called and from where; Leave answers whoever calls, without a certificate too."""

    @guard
    def Heartbeat(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return edged_pb2.Document(body=f"{peer_device(context)} {peer_host(context)}".encode())

    @guard
    def Leave(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return edged_pb2.Document(body=b"answered")

    def add_to(self, server: grpc.Server) -> None:
        edged_pb2_grpc.add_CoordinatorServicer_to_server(self, server)


class Failing(edged_pb2_grpc.StoreServicer, edged_pb2_grpc.RingServicer):
    """Raises the error whose code is in the request's body (any other text: a bug)."""

    @guard
    def Which(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self._fail(request.body.decode())

    @guard
    def Fetch(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        yield edged_pb2.PartChunk(data=b"first")
        self._fail(request.sha256)

    @guard
    def Catalogue(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return request

    @guard
    def Pass(self, requests: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return edged_pb2.Receipt(frames=sum(1 for _ in requests))

    def _fail(self, code: str) -> None:
        if code in BY_CODE:
            raise BY_CODE[code](f"it is {code}: größer als gedacht")
        raise ZeroDivisionError("secret of the inside")

    def add_to(self, server: grpc.Server) -> None:
        edged_pb2_grpc.add_StoreServicer_to_server(self, server)
        edged_pb2_grpc.add_RingServicer_to_server(self, server)


def in_thread(action: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=action)
    thread.start()
    return thread
