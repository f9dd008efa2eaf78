"""The front door from inside: the daemon's side of the service FrontDoor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import grpc

from edged.rpc import edged_pb2, edged_pb2_grpc
from edged.rpc.limit import Limit
from edged.rpc.messages import (
    LoadRequest,
    ModelsAnswer,
    ModelsQuery,
    Progress,
    StatusAnswer,
    StatusQuery,
    StopAnswer,
    StopRequest,
    TokenAnswer,
    TokenRequest,
)
from edged.rpc.status import guard
from edged.serving.generation import GenerateRequest, Generation

LASTING = 24  # answers and loads at once: each holds one thread of the server, and short calls need some, too


class Interior(Protocol):
    """What the daemon can do for whoever comes to the door. Every method may raise EdgedError."""

    def generate(self, request: GenerateRequest) -> Generation: ...
    def load(self, model: str) -> Iterator[Progress]: ...
    def models(self) -> ModelsAnswer: ...
    def status(self) -> StatusAnswer: ...


class Keys(Protocol):
    """What only the owner of this device may do: on the local socket, not over the network."""

    def token(self) -> TokenAnswer: ...
    def stop(self) -> StopAnswer: ...


class FrontDoorService(edged_pb2_grpc.FrontDoorServicer):
    """`keys` is None where the network comes in: then Token and Stop stay unimplemented."""

    def __init__(self, interior: Interior, keys: Keys | None = None) -> None:
        self._interior = interior
        self._keys = keys
        self._lasting = Limit(LASTING, "requests of other devices and terminals")

    @guard
    def Generate(
        self, request: edged_pb2.Document, context: grpc.ServicerContext
    ) -> Iterator[edged_pb2.Document]:
        with self._lasting.one():
            generation = self._interior.generate(GenerateRequest.unpack(request.body))
            if not context.add_callback(generation.cancel):
                generation.cancel()  # hung up already
            for event in generation:
                yield edged_pb2.Document(body=event.pack())

    @guard
    def Load(
        self, request: edged_pb2.Document, context: grpc.ServicerContext
    ) -> Iterator[edged_pb2.Document]:
        with self._lasting.one():
            for step in self._interior.load(LoadRequest.unpack(request.body).model):
                if not context.is_active():
                    return
                yield edged_pb2.Document(body=step.pack())

    @guard
    def Models(self, request: edged_pb2.Document, context: grpc.ServicerContext) -> edged_pb2.Document:
        ModelsQuery.unpack(request.body)
        answer: ModelsAnswer = self._interior.models()
        return edged_pb2.Document(body=answer.pack())

    @guard
    def Status(self, request: edged_pb2.Document, context: grpc.ServicerContext) -> edged_pb2.Document:
        StatusQuery.unpack(request.body)
        answer: StatusAnswer = self._interior.status()
        return edged_pb2.Document(body=answer.pack())

    @guard
    def Token(self, request: edged_pb2.Document, context: grpc.ServicerContext) -> edged_pb2.Document:
        TokenRequest.unpack(request.body)
        answer: TokenAnswer = self._local(context).token()
        return edged_pb2.Document(body=answer.pack())

    @guard
    def Stop(self, request: edged_pb2.Document, context: grpc.ServicerContext) -> edged_pb2.Document:
        StopRequest.unpack(request.body)
        answer: StopAnswer = self._local(context).stop()
        return edged_pb2.Document(body=answer.pack())

    def _local(self, context: grpc.ServicerContext) -> Keys:
        if self._keys is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "this is answered on the device itself only")
        assert self._keys is not None
        return self._keys
