"""The service Member: the coordinator's hand on this device."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grpc

from edged.cluster.assignment import Assignment, Endpoint, EpochAnswer, EpochNotice
from edged.cluster.link_probe import measure_link
from edged.cluster.messages import LinkQuery
from edged.cluster.worker import Worker
from edged.errors import UntrustedPeerError
from edged.rpc import edged_pb2, edged_pb2_grpc
from edged.rpc.server import peer_device, peer_host
from edged.rpc.status import guard


class MemberService(edged_pb2_grpc.MemberServicer):
    """Answers the coordinator and nobody else. `dial`: a channel to a device, closed after use."""

    def __init__(self, worker: Worker, coordinator: str, dial: Callable[[Endpoint], grpc.Channel]) -> None:
        self._worker = worker
        self._coordinator = coordinator
        self._dial = dial

    @guard
    def Prepare(
        self, request: edged_pb2.Document, context: grpc.ServicerContext
    ) -> Iterator[edged_pb2.Document]:
        self._check(context)
        assignment = _with_host(Assignment.unpack(request.body), peer_host(context))
        for step in self._worker.prepare(assignment):
            yield edged_pb2.Document(body=step.pack())

    @guard
    def Activate(self, request: edged_pb2.Document, context: grpc.ServicerContext) -> edged_pb2.Document:
        self._check(context)
        self._worker.activate(EpochNotice.unpack(request.body).epoch)
        return self._answer()

    @guard
    def Release(self, request: edged_pb2.Document, context: grpc.ServicerContext) -> edged_pb2.Document:
        self._check(context)
        self._worker.release(EpochNotice.unpack(request.body).epoch)
        return self._answer()

    @guard
    def Ping(self, request: edged_pb2.Document, context: grpc.ServicerContext) -> edged_pb2.Document:
        EpochNotice.unpack(request.body)
        self._check(context)
        return self._answer()

    @guard
    def MeasureLink(self, request: edged_pb2.Document, context: grpc.ServicerContext) -> edged_pb2.Document:
        self._check(context)
        target = _reachable(LinkQuery.unpack(request.body).target, peer_host(context))
        channel = self._dial(target)
        context.add_callback(channel.close)  # also where the coordinator does not wait for the answer
        try:
            return edged_pb2.Document(body=measure_link(channel, target.name).pack())
        finally:
            channel.close()

    def _check(self, context: grpc.ServicerContext) -> None:
        if peer_device(context) != self._coordinator:
            raise UntrustedPeerError("only the coordinator of the cluster may ask this")

    def _answer(self) -> edged_pb2.Document:
        return edged_pb2.Document(
            body=EpochAnswer(epoch=self._worker.epoch, computing=self._worker.is_computing).pack()
        )


def _with_host(assignment: Assignment, host: str) -> Assignment:
    endpoints = tuple(_reachable(endpoint, host) for endpoint in assignment.endpoints)
    return assignment.model_copy(update={"endpoints": endpoints})


def _reachable(endpoint: Endpoint, host: str) -> Endpoint:
    """The coordinator does not know by which of its addresses it is reached; whoever it calls does."""
    return endpoint if endpoint.host else endpoint.model_copy(update={"host": host})
