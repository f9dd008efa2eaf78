"""What the coordinator hears from a device that is there and does nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Event

import grpc
import pytest

from edged.cluster.assignment import Assignment
from edged.cluster.identity import Identity
from edged.cluster.member_client import MemberClient
from edged.errors import StalledError
from edged.planning.plan import ContextOptions, Hop, Plan
from edged.rpc import edged_pb2, edged_pb2_grpc
from edged.rpc.channel import connect
from edged.rpc.messages import Progress
from edged.rpc.server import serve


class Sleeper(edged_pb2_grpc.MemberServicer):
    """Begins to prepare and never gets on."""

    def Prepare(  # noqa: N802
        self, request: edged_pb2.Document, context: grpc.ServicerContext
    ) -> Iterator[edged_pb2.Document]:
        yield edged_pb2.Document(body=Progress(stage="loading layers").pack())
        ended = Event()
        context.add_callback(ended.set)
        ended.wait()


def test_a_preparation_that_does_not_get_on_is_given_up(
    founder: Identity, make_member: Callable[[str], Identity], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edged.cluster.member_client.STALL_S", 0.2)
    pi = make_member("pi")
    plan = Plan(
        epoch=1,
        model="m",
        n_layers=1,
        hops=(Hop(device=founder.device, first=0, last=1),),
        context=ContextOptions(n_ctx=256, n_seq_max=1, n_ubatch=8),
    )
    assignment = Assignment(plan=plan, manifest=b"", endpoints=(), sources=())
    add = edged_pb2_grpc.add_MemberServicer_to_server
    with serve(pi, [lambda server: add(Sleeper(), server)], 0) as server:
        client = MemberClient(connect(founder, pi.device, "127.0.0.1", server.port), "pi")
        steps = client.prepare(assignment)
        assert next(steps).stage == "loading layers"
        with pytest.raises(StalledError, match="pi did not get on"):
            next(steps)
        client.close()
