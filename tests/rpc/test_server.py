"""Ports, the local socket, and ending."""

from __future__ import annotations

import os
import select
import socket
import stat
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from edged.cluster.identity import Identity
from edged.errors import (
    AlreadyRunningError,
    NotRunningError,
    PeerLostError,
    PortTakenError,
    SettingsError,
    UntrustedPeerError,
)
from edged.rpc import edged_pb2, edged_pb2_grpc
from edged.rpc.channel import connect, connect_local
from edged.rpc.options import SERVER
from edged.rpc.server import serve, serve_local
from edged.rpc.status import unwrap
from tests.rpc.servicers import Echo, Failing

HOST = "127.0.0.1"


def test_two_daemons_cannot_share_a_port(founder: Identity, member: Identity) -> None:
    with (
        serve(founder, [], 0) as first,
        pytest.raises(PortTakenError, match=f"port {first.port} is taken by another program: .*--port"),
    ):
        serve(member, [], first.port)


def test_a_port_that_another_program_has(founder: Identity) -> None:
    with socket.create_server(("0.0.0.0", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortTakenError, match=str(port)):
            serve(founder, [], port)


def test_a_port_that_is_none(founder: Identity) -> None:
    with pytest.raises(SettingsError, match="70000 is no port"):
        serve(founder, [], 70_000)


def test_the_port_is_free_again_after_close(founder: Identity, member: Identity) -> None:
    with serve(founder, [Echo().add_to], 0) as first:
        channel = connect(member, founder.device, HOST, first.port)
        edged_pb2_grpc.CoordinatorStub(channel).Heartbeat(edged_pb2.Document(), timeout=5)
        channel.close()
    with serve(founder, [], first.port) as again:
        assert again.port == first.port


def test_strangers_cannot_take_more_connections_than_there_are(
    founder: Identity, member: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    option, most = "grpc.max_allowed_incoming_connections", 8
    assert option in dict(SERVER)
    monkeypatch.setattr("edged.rpc.server.SERVER", tuple((dict(SERVER) | {option: most}).items()))
    with serve(founder, [Echo().add_to], 0) as server, ExitStack() as connections:
        crowd = [
            connections.enter_context(socket.create_connection((HOST, server.port))) for _ in range(3 * most)
        ]
        for _ in range(2 * most):  # closed at once, and not when the handshake has taken too long
            gone, _, _ = select.select(crowd, [], [], 4)
            assert gone, "too many connections were kept"
            crowd.remove(gone[0])
        connections.close()
        channel = connect(member, founder.device, HOST, server.port)
        edged_pb2_grpc.CoordinatorStub(channel).Heartbeat(
            edged_pb2.Document(), timeout=10, wait_for_ready=True
        )
        channel.close()


def test_a_call_on_a_closed_channel_is_an_error_and_not_the_end_of_the_process(
    founder: Identity, member: Identity
) -> None:
    with serve(founder, [Echo().add_to], 0) as server:
        channel = connect(member, founder.device, HOST, server.port)
        stub = edged_pb2_grpc.CoordinatorStub(channel)
        stub.Heartbeat(edged_pb2.Document(), timeout=5)
        channel.close()
        with pytest.raises(PeerLostError, match="closed"):
            stub.Heartbeat(edged_pb2.Document(), timeout=5)


def test_close_ends_a_stream_that_is_open(founder: Identity, member: Identity) -> None:
    with serve(founder, [Failing().add_to], 0) as server:
        channel = connect(member, founder.device, HOST, server.port)
        arrived = False

        def frames() -> object:
            nonlocal arrived
            yield edged_pb2.Frame()
            arrived = True
            server.close(grace_s=0.0)
            yield edged_pb2.Frame()

        with pytest.raises(grpc.RpcError):
            edged_pb2_grpc.RingStub(channel).Pass(frames(), timeout=30)
        assert arrived
        channel.close()
    server.close()


def test_the_local_socket_is_private_and_goes_with_its_server(tmp_path: Path) -> None:
    path = tmp_path / "run" / "daemon.sock"
    with serve_local(path, [Echo().add_to]):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        channel = connect_local(path)
        stub = edged_pb2_grpc.CoordinatorStub(channel)
        assert stub.Leave(edged_pb2.Document(), timeout=5).body == b"answered"
        with pytest.raises(grpc.RpcError) as caught:
            stub.Heartbeat(edged_pb2.Document(), timeout=5)
        assert isinstance(unwrap(caught.value, "daemon"), UntrustedPeerError)
        channel.close()
    assert not path.exists()
    with pytest.raises(NotRunningError):
        connect_local(path)


def test_a_socket_in_use_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "run" / "daemon.sock"
    with serve_local(path, [Echo().add_to]):
        with pytest.raises(AlreadyRunningError):
            serve_local(path, [])
        channel = connect_local(path)
        assert (
            edged_pb2_grpc.CoordinatorStub(channel).Leave(edged_pb2.Document(), timeout=5).body == b"answered"
        )
        channel.close()


def test_the_socket_of_a_killed_daemon_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run" / "daemon.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with serve_local(path, [Echo().add_to]):
        connect_local(path).close()


def test_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="too long for a socket: choose a shorter --home"):
        serve_local(tmp_path / ("x" * 100) / "daemon.sock", [])


def test_a_directory_open_to_all_is_not_taken(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    os.chmod(shared, 0o1777)  # noqa: PTH101
    with pytest.raises(SettingsError, match="everybody can write to"):
        serve_local(shared / "daemon.sock", [])
    assert stat.S_IMODE(shared.stat().st_mode) == 0o1777
