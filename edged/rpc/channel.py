"""Calling another device: mutual TLS within the cluster, and a plain word where that fails."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from pathlib import Path
from typing import Protocol

import grpc

from edged.errors import ClusterError, EdgedError, NotRunningError, PeerLostError, UntrustedPeerError
from edged.rpc.closing import ClosableChannel
from edged.rpc.options import CLIENT
from edged.rpc.status import unwrap
from edged.rpc.version import NameVersion

PROBE_TIMEOUT_S = 3.0
HOSTNAME_MISMATCH = 62  # OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH


class Credentials(Protocol):
    """What a connection needs of `edged.cluster.identity.Identity`."""

    @property
    def key_pem(self) -> bytes: ...
    @property
    def certificate_pem(self) -> bytes: ...
    @property
    def ca_pem(self) -> bytes: ...
    @property
    def cluster(self) -> str: ...
    @property
    def key_file(self) -> Path: ...
    @property
    def certificate_file(self) -> Path: ...


def connect(identity: Credentials, peer: str, host: str, port: int) -> grpc.Channel:
    """A channel to the device with id `peer`, and to no other, at `host`:`port`.

    It connects with the first call; close it when done. Raises PeerLostError for a host name that nobody
    knows.
    """
    credentials = grpc.ssl_channel_credentials(
        root_certificates=identity.ca_pem,
        private_key=identity.key_pem,
        certificate_chain=identity.certificate_pem,
    )
    options = (*CLIENT, ("grpc.ssl_target_name_override", f"{peer}.edged"))
    channel = ClosableChannel(grpc.secure_channel(_target(host, port), credentials, options=options))
    return grpc.intercept_channel(channel, NameVersion())


def connect_local(path: Path) -> grpc.Channel:
    """A channel to the daemon whose local front door is the Unix socket `path`.

    Raises NotRunningError if there is no such socket.
    """
    if not path.is_socket():
        raise NotRunningError("no daemon runs here: start one with `edged start`")
    channel = ClosableChannel(grpc.insecure_channel(f"unix:{path.absolute()}", options=CLIENT))
    return grpc.intercept_channel(channel, NameVersion())


def explain(
    error: grpc.RpcError, identity: Credentials, peer: str, host: str, port: int, name: str = ""
) -> EdgedError:
    """Like `unwrap`, and where the peer could not be reached at all it looks why, for up to 3 s.

    `name` is what people call the device, if not by its id.
    """
    if getattr(error, "code", lambda: None)() != grpc.StatusCode.UNAVAILABLE:
        return unwrap(error, name or peer)
    return diagnose(identity, peer, host, port) or unwrap(error, name or peer)


def diagnose(
    identity: Credentials, peer: str, host: str, port: int, timeout_s: float = PROBE_TIMEOUT_S
) -> EdgedError | None:
    """Tries a TLS handshake of its own and says in words what is wrong; None if nothing is.

    gRPC says "unavailable" for a dead device, a stranger's certificate and a web server alike.
    """
    place = shown(host, port)
    context = ssl.create_default_context(cadata=identity.ca_pem.decode())
    context.load_cert_chain(identity.certificate_file, identity.key_file)
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, port), timeout=timeout_s) as raw,
            context.wrap_socket(raw, server_hostname=f"{peer}.edged") as tls,
        ):
            if tls.selected_alpn_protocol() != "h2":
                return UntrustedPeerError(f"{place} is not the port that edged gave with --port")
            # In TLS 1.3 the server judges our certificate when our side is done: see what it says.
            if tls.recv(1):
                return None
            return UntrustedPeerError(f"{place} does not accept this device's certificate: it hung up")
    except ssl.SSLError as error:
        return UntrustedPeerError(f"{place} {_tls_trouble(error, identity, peer)}")
    except OSError as error:
        return PeerLostError(f"{place} {_network_trouble(error)}")


def shown(host: str, port: int) -> str:
    """An address as people write it; an IPv6 one needs its brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _tls_trouble(error: ssl.SSLError, identity: Credentials, peer: str) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code == HOSTNAME_MISMATCH:
            return f"is another device of this cluster than {peer}: has its address changed?"
        return f"has no certificate of this cluster ({identity.cluster}): it belongs to another one"
    if "ALERT" in (error.reason or ""):
        return f"does not accept this device's certificate: it is of another cluster than {identity.cluster}"
    return "does not speak TLS: another program than edged answers there"


def _network_trouble(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "refuses connections: is edged running there?"
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return "hung up: another program than edged may answer there"
    if isinstance(error, TimeoutError):
        return "does not answer: is the device on, and no firewall between?"
    if isinstance(error, socket.gaierror):
        return "is a name that nobody knows"
    return f"cannot be reached: {error.strerror or error}"


def _target(host: str, port: int) -> str:
    """gRPC's address form. Names are looked up here: gRPC's own resolver does not know `.local` names."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise PeerLostError(f"nobody knows the address of {host}") from None
    for family, _, _, _, address in found:
        if family == socket.AF_INET:
            return f"ipv4:{address[0]}:{port}"
    for family, _, _, _, address in found:
        if family == socket.AF_INET6:
            return f"ipv6:[{ipaddress.ip_address(address[0])}]:{port}"
    raise ClusterError(f"{host} has neither an IPv4 nor an IPv6 address")
