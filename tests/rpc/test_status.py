"""Errors cross the wire as themselves, and nothing else crosses it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import grpc
import pytest

from edged.cluster.identity import Identity
from edged.errors import BY_CODE, EdgedError, PeerLostError, UntrustedPeerError, VersionMismatchError
from edged.rpc import edged_pb2, edged_pb2_grpc
from edged.rpc.channel import connect
from edged.rpc.server import serve
from edged.rpc.status import one_line, unwrap
from tests.rpc.servicers import Failing


@pytest.fixture
def channel(founder: Identity, member: Identity) -> Iterator[grpc.Channel]:
    with serve(founder, [Failing().add_to], 0) as server:
        opened = connect(member, founder.device, "127.0.0.1", server.port)
        yield opened
        opened.close()


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_every_error_arrives_as_itself(channel: grpc.Channel, code: str) -> None:
    stub = edged_pb2_grpc.StoreStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Which(edged_pb2.Document(body=code.encode()))
    error = unwrap(caught.value, "nas")
    assert type(error) is BY_CODE[code]
    assert error.message == f"it is {code}: größer als gedacht"


def test_a_stream_fails_after_what_it_sent(channel: grpc.Channel) -> None:
    stream = edged_pb2_grpc.StoreStub(channel).Fetch(edged_pb2.PartRequest(sha256="disk_full"))
    assert next(stream).data == b"first"
    with pytest.raises(grpc.RpcError) as caught:
        next(stream)
    assert type(unwrap(caught.value, "nas")) is BY_CODE["disk_full"]


@pytest.mark.parametrize("kind", ["unary", "stream"])
def test_a_bug_is_one_line_outside_and_a_traceback_in_the_log(
    channel: grpc.Channel, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    stub = edged_pb2_grpc.StoreStub(channel)
    with caplog.at_level(logging.ERROR), pytest.raises(grpc.RpcError) as caught:
        if kind == "unary":
            stub.Which(edged_pb2.Document(body=b"?"))
        else:
            list(stub.Fetch(edged_pb2.PartRequest(sha256="?")))
    error = unwrap(caught.value, "nas")
    assert type(error) is EdgedError
    assert "secret" not in error.message
    assert "log of that device" in error.message
    assert "ZeroDivisionError: secret of the inside" in caplog.text


def test_a_request_that_is_no_protobuf_harms_nobody(channel: grpc.Channel) -> None:
    raw = channel.unary_unary("/edged.v1.Store/Which")
    with pytest.raises(grpc.RpcError) as caught:
        raw(b"\xff\xff\xff")
    assert isinstance(unwrap(caught.value, "nas"), EdgedError)
    stub = edged_pb2_grpc.StoreStub(channel)
    assert stub.Catalogue(edged_pb2.Document(body=b"still here")).body == b"still here"


def test_a_method_that_is_not_there(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        edged_pb2_grpc.FrontDoorStub(channel).Status(edged_pb2.Document())
    error = unwrap(caught.value, "nas")
    assert isinstance(error, VersionMismatchError)
    assert error.message.startswith("nas does not know this request")


class Plain(grpc.RpcError):
    def __init__(
        self, code: grpc.StatusCode, details: str, metadata: tuple[tuple[str, str], ...] = ()
    ) -> None:
        self._said = (code, details, metadata)

    def code(self) -> grpc.StatusCode:
        return self._said[0]

    def details(self) -> str:
        return self._said[1]

    def trailing_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._said[2]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, PeerLostError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, PeerLostError),
        (grpc.StatusCode.CANCELLED, PeerLostError),
        (grpc.StatusCode.PERMISSION_DENIED, UntrustedPeerError),
        (grpc.StatusCode.INTERNAL, EdgedError),
    ],
)
def test_statuses_of_grpc_itself(code: grpc.StatusCode, kind: type[EdgedError]) -> None:
    error = unwrap(Plain(code, "some {details} of grpc"), "nas")
    assert type(error) is kind
    assert error.message.startswith("nas ")


def test_what_a_peer_says_cannot_draw_on_the_terminal() -> None:
    error = unwrap(
        Plain(grpc.StatusCode.INTERNAL, "\x1b[2Jgone\nline", (("edged-code", "disk_full"),)), "nas"
    )
    assert error.message == "[2Jgone line"
    assert len(one_line("x" * 10**6)) < 10**4


def test_an_unknown_code_is_not_believed() -> None:
    error = unwrap(Plain(grpc.StatusCode.INTERNAL, "oh", (("edged-code", "os.system"),)), "nas")
    assert type(error) is EdgedError


def test_an_error_without_a_status() -> None:
    assert isinstance(unwrap(grpc.RpcError(), "nas"), EdgedError)


def test_a_long_stream_passes_whole(channel: grpc.Channel) -> None:
    frames = (edged_pb2.Frame(epoch=1, batch=i, activations=bytes(16384)) for i in range(200))
    assert edged_pb2_grpc.RingStub(channel).Pass(frames).frames == 200


def test_a_large_message_passes(channel: grpc.Channel) -> None:
    large = edged_pb2.Document(body=bytes(40 * 2**20))
    assert len(edged_pb2_grpc.StoreStub(channel).Catalogue(large).body) == len(large.body)
