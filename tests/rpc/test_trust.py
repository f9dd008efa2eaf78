"""Who gets through to whom, and what is said where somebody does not."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from edged import PROTOCOL_VERSION
from edged.cluster.identity import Identity
from edged.errors import EdgedError, PeerLostError, UntrustedPeerError, VersionMismatchError
from edged.rpc import edged_pb2, edged_pb2_grpc, version
from edged.rpc.channel import connect, diagnose, explain
from edged.rpc.options import CLIENT
from edged.rpc.server import Server, serve
from edged.rpc.status import unwrap
from tests.rpc.servicers import Echo, in_thread

HOST = "127.0.0.1"


@pytest.fixture
def server(founder: Identity) -> Iterator[Server]:
    with serve(founder, [Echo().add_to], 0) as running:
        yield running


@dataclass(frozen=True)
class Disguised:
    """The certificate of one cluster, and the trust of another."""

    own: Identity
    trusted: Identity

    @property
    def key_pem(self) -> bytes:
        return self.own.key_pem

    @property
    def certificate_pem(self) -> bytes:
        return self.own.certificate_pem

    @property
    def ca_pem(self) -> bytes:
        return self.trusted.ca_pem

    @property
    def cluster(self) -> str:
        return self.trusted.cluster

    @property
    def key_file(self) -> Path:
        return self.own.key_file

    @property
    def certificate_file(self) -> Path:
        return self.own.certificate_file


def call(identity: Identity | Disguised, peer: str, port: int) -> str:
    channel = connect(identity, peer, HOST, port)
    try:
        return str(
            edged_pb2_grpc.CoordinatorStub(channel).Heartbeat(edged_pb2.Document(), timeout=5).body, "ascii"
        )
    except grpc.RpcError as error:
        raise explain(error, identity, peer, HOST, port) from None
    finally:
        channel.close()


def test_a_member_gets_through_and_is_known_by_its_certificate(
    server: Server, founder: Identity, member: Identity
) -> None:
    assert call(member, founder.device, server.port) == f"{member.device} 127.0.0.1"
    assert diagnose(member, founder.device, HOST, server.port) is None


def test_another_cluster_is_refused_by_the_caller(
    server: Server, founder: Identity, stranger: Identity
) -> None:
    with pytest.raises(UntrustedPeerError, match=rf"no certificate of this cluster \({stranger.cluster}\)"):
        call(stranger, founder.device, server.port)


def test_another_cluster_is_refused_by_the_server(
    server: Server, founder: Identity, member: Identity, stranger: Identity
) -> None:
    intruder = Disguised(own=stranger, trusted=member)
    with pytest.raises(UntrustedPeerError, match="does not accept this device's certificate"):
        call(intruder, founder.device, server.port)


def test_another_device_of_the_cluster_is_not_taken_for_the_one_meant(
    server: Server, member: Identity
) -> None:
    with pytest.raises(UntrustedPeerError, match="is another device of this cluster than"):
        call(member, member.device, server.port)


def test_unwrap_alone_also_tells_a_stranger(server: Server, founder: Identity, stranger: Identity) -> None:
    channel = connect(stranger, founder.device, HOST, server.port)
    with pytest.raises(grpc.RpcError) as caught:
        edged_pb2_grpc.CoordinatorStub(channel).Heartbeat(edged_pb2.Document(), timeout=5)
    channel.close()
    assert isinstance(unwrap(caught.value, "nas"), UntrustedPeerError)


def refused(channel: grpc.Channel) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        edged_pb2_grpc.CoordinatorStub(channel).Heartbeat(edged_pb2.Document(), timeout=5)
    channel.close()
    return caught.value.code()


def test_no_certificate_no_entry(server: Server, founder: Identity) -> None:
    options = (*CLIENT, ("grpc.ssl_target_name_override", f"{founder.device}.edged"))
    credentials = grpc.ssl_channel_credentials(founder.ca_pem)
    channel = grpc.secure_channel(f"ipv4:{HOST}:{server.port}", credentials, options=options)
    assert refused(channel) == grpc.StatusCode.UNAVAILABLE


def test_plaintext_is_refused(server: Server) -> None:
    channel = grpc.insecure_channel(f"ipv4:{HOST}:{server.port}")
    assert refused(channel) == grpc.StatusCode.UNAVAILABLE


def test_a_plaintext_server_is_named(founder: Identity, member: Identity) -> None:
    with socket.create_server((HOST, 0)) as plain:
        closing = threading.Event()

        def answer() -> None:
            while not closing.is_set():
                connection, _ = plain.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        port = plain.getsockname()[1]
        thread = in_thread(answer)
        try:
            with pytest.raises(UntrustedPeerError, match="does not speak TLS"):
                call(member, founder.device, port)
        finally:
            closing.set()
            with socket.create_connection((HOST, port)) as last:
                last.sendall(b"bye")
            thread.join()


def test_nobody_listens(founder: Identity, member: Identity) -> None:
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(PeerLostError, match="refuses connections: is edged running there"):
        call(member, founder.device, port)


def test_somebody_listens_and_says_nothing(founder: Identity, member: Identity) -> None:
    with socket.create_server((HOST, 0)) as silent:
        error = diagnose(member, founder.device, HOST, silent.getsockname()[1], timeout_s=0.3)
    assert isinstance(error, PeerLostError)
    assert "does not answer" in error.message


def test_a_host_that_nobody_knows(member: Identity) -> None:
    with pytest.raises(PeerLostError, match="nobody knows the address of"):
        connect(member, "0" * 16, "no-such-host.invalid", 1)


def test_another_version_is_refused_with_both_named(
    server: Server, founder: Identity, member: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = PROTOCOL_VERSION + 1
    monkeypatch.setattr(
        version, "VERSION_METADATA", (("edged-protocol", str(theirs)), ("edged-version", "9.8"))
    )
    expected = rf"\(protocol {PROTOCOL_VERSION}\), .* edged 9.8 \(protocol {theirs}\): install the same"
    with pytest.raises(VersionMismatchError, match=expected):
        call(member, founder.device, server.port)
    channel = connect(member, founder.device, HOST, server.port)
    try:
        for stub, request in (
            (edged_pb2_grpc.StoreStub(channel).Fetch, edged_pb2.PartRequest()),
            (edged_pb2_grpc.RingStub(channel).Pass, iter([edged_pb2.Frame()])),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                outcome = stub(request, timeout=5)
                list(outcome)
            assert isinstance(unwrap(caught.value, "nas"), EdgedError)
    finally:
        channel.close()


def test_an_endless_version_is_not_repeated(
    server: Server, founder: Identity, member: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = (("edged-protocol", "9" * 1000), ("edged-version", "8" * 1000))
    monkeypatch.setattr(version, "VERSION_METADATA", endless)
    with pytest.raises(VersionMismatchError, match=r"edged 888.*protocol 999") as caught:
        call(member, founder.device, server.port)
    assert len(caught.value.message) < 300


def test_a_caller_that_names_no_version_is_refused(
    server: Server, founder: Identity, member: Identity
) -> None:
    credentials = grpc.ssl_channel_credentials(member.ca_pem, member.key_pem, member.certificate_pem)
    options = (*CLIENT, ("grpc.ssl_target_name_override", f"{founder.device}.edged"))
    channel = grpc.secure_channel(f"ipv4:{HOST}:{server.port}", credentials, options=options)
    with pytest.raises(grpc.RpcError) as caught:
        edged_pb2_grpc.CoordinatorStub(channel).Heartbeat(edged_pb2.Document(), timeout=5)
    channel.close()
    assert isinstance(unwrap(caught.value, "nas"), VersionMismatchError)


def test_garbage_does_not_stop_the_server(server: Server, founder: Identity, member: Identity) -> None:
    half_a_hello = b"\x16\x03\x01\xff\xff" + b"\0" * 100
    for garbage in (b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", half_a_hello, os.urandom(20_000)):
        with socket.create_connection((HOST, server.port)) as stranger_socket:
            stranger_socket.sendall(garbage)
    with socket.create_connection((HOST, server.port)):  # and one that lingers
        assert call(member, founder.device, server.port).startswith(member.device)
