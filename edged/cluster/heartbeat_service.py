"""The coordinator's side of heartbeats: gRPC in, membership table and cluster view out."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from edged.cluster.membership import Membership
from edged.cluster.messages import ClusterView, HeartbeatReport, LeaveAnswer, LeaveNotice
from edged.planning.profile import LinkProfile
from edged.rpc import edged_pb2, edged_pb2_grpc
from edged.rpc.server import peer_device, peer_host
from edged.rpc.status import guard


class HeartbeatService(edged_pb2_grpc.CoordinatorServicer):
    """Serves `Coordinator`. `view` says what members are told; it is called for every heartbeat.

    links: those of the device with this id, for itself to see.
    """

    def __init__(
        self,
        membership: Membership,
        view: Callable[[], ClusterView],
        links: Callable[[str], tuple[LinkProfile, ...]] = lambda _: (),
    ) -> None:
        self._membership = membership
        self._view = view
        self._links = links

    @guard
    def Heartbeat(self, request: edged_pb2.Document, context: grpc.ServicerContext) -> edged_pb2.Document:
        report = HeartbeatReport.unpack(request.body)
        device = peer_device(context)
        self._membership.heartbeat(device, peer_host(context), report)
        view = self._view().model_copy(update={"links": self._links(device)})
        return edged_pb2.Document(body=view.pack())

    @guard
    def Leave(self, request: edged_pb2.Document, context: grpc.ServicerContext) -> edged_pb2.Document:
        self._membership.leave(peer_device(context), LeaveNotice.unpack(request.body).run)
        return edged_pb2.Document(body=LeaveAnswer().pack())

    def add_to(self, server: grpc.Server) -> None:
        """Fits `edged.rpc.server.serve`."""
        edged_pb2_grpc.add_CoordinatorServicer_to_server(self, server)
