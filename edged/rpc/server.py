"""Being called: mutual TLS for devices of the cluster, a Unix socket for this machine's command line."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self
from urllib.parse import unquote

import grpc

from edged.errors import AlreadyRunningError, SettingsError, UntrustedPeerError
from edged.private_file import private_directory
from edged.rpc.channel import Credentials
from edged.rpc.listening import listen, taken
from edged.rpc.options import DEFAULT_THREADS, SERVER
from edged.rpc.version import CheckVersion

Register = Callable[[grpc.Server], None]
"""Adds one servicer: `lambda server: add_RingServicer_to_server(servicer, server)`."""

MAX_SOCKET_PATH = 100  # bytes; the kernel allows 107, and gRPC adds a little
GRACE_S = 1.0


class Server:
    """A gRPC server with the threads it runs on, from its start until `close`."""

    def __init__(
        self, server: grpc.Server, pool: ThreadPoolExecutor, port: int = 0, path: Path | None = None
    ) -> None:
        self._server = server
        self._pool = pool
        self.port = port  # 0 for a Unix socket
        self._path = path

    def close(self, grace_s: float = GRACE_S) -> None:
        """Takes no new calls, gives those in progress `grace_s` seconds, then ends them. Idempotent."""
        self._server.stop(grace_s).wait()
        self._pool.shutdown(wait=True)
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(
    identity: Credentials, services: Iterable[Register], port: int, threads: int = DEFAULT_THREADS
) -> Server:
    """Serves devices of this cluster on `port` of every address (0: the system chooses, see `Server.port`).

    A caller without a certificate of this cluster does not get past the handshake. Raises PortTakenError.
    """
    credentials = grpc.ssl_server_credentials(
        [(identity.key_pem, identity.certificate_pem)],
        root_certificates=identity.ca_pem,
        require_client_auth=True,
    )
    listen(port).close()  # says why a port cannot be had; gRPC only says that it cannot
    server, pool = _build(services, threads, "edged-rpc")
    try:
        bound = server.add_secure_port(f"[::]:{port}", credentials)
    except RuntimeError:
        bound = 0
    if not bound:
        pool.shutdown()
        raise taken(port)
    server.start()
    return Server(server, pool, port=bound)


def serve_local(path: Path, services: Iterable[Register], threads: int = DEFAULT_THREADS) -> Server:
    """Serves this user's own programs on the Unix socket `path`, whose directory becomes 0700.

    Raises AlreadyRunningError if somebody listens there, SettingsError if the path will not do.
    """
    if len(bytes(path.absolute())) > MAX_SOCKET_PATH:
        raise SettingsError(f"{path.absolute()} is too long for a socket: choose a shorter --home")
    private_directory(path.parent)
    if _answers(path):
        raise AlreadyRunningError(f"a daemon runs here already: {path} answers")
    path.unlink(missing_ok=True)  # left by a daemon that was killed
    server, pool = _build(services, threads, "edged-local")
    try:
        bound = server.add_insecure_port(f"unix:{path.absolute()}")
    except RuntimeError:
        bound = 0
    if not bound:
        pool.shutdown()
        raise SettingsError(f"cannot make the socket {path}")
    path.chmod(0o600)
    server.start()
    return Server(server, pool, path=path)


def peer_device(context: grpc.ServicerContext) -> str:
    """Id of the calling device, as its certificate says. Raises UntrustedPeerError on the local socket."""
    names: Sequence[bytes] = context.auth_context().get("x509_common_name", ())
    if len(names) != 1:
        raise UntrustedPeerError("only a device of the cluster may ask this")
    return names[0].decode("ascii", "replace")


def peer_host(context: grpc.ServicerContext) -> str:
    """The IP address that the call came from. Raises UntrustedPeerError on the local socket."""
    kind, _, rest = unquote(context.peer()).partition(":")
    if kind not in ("ipv4", "ipv6"):
        raise UntrustedPeerError("only a device of the cluster may ask this")
    address = ipaddress.ip_address(rest.rpartition(":")[0].strip("[]"))
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)


def _build(services: Iterable[Register], threads: int, name: str) -> tuple[grpc.Server, ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    server = grpc.server(pool, interceptors=(CheckVersion(),), options=SERVER)
    for register in services:
        register(server)
    return server, pool


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path.absolute()))
        except OSError:
            return False
        return True
