"""The two transports behind one face, with cables that can be cut."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc

from edged.cluster import authority
from edged.ring.grpc_transport import GrpcLink, GrpcTransport
from edged.ring.memory import MemoryLink, MemoryNetwork
from edged.rpc.channel import connect
from edged.rpc.server import Server, peer_device, serve


class Cable:
    """A TCP relay to `port` on loopback, until it is cut."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = [self._listener]
        self._threads = [threading.Thread(target=self._accept, name="cable")]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [near, far]
                for a, b in ((near, far), (far, near)):
                    thread = threading.Thread(target=self._pump, args=(a, b), name="cable-pump")
                    self._threads.append(thread)
                    thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        for end in list(self._sockets):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in list(self._threads):
            thread.join()


@dataclass(frozen=True)
class Certificates:
    """What a device shows the others; what `edged.rpc` asks of an identity."""

    key_pem: bytes
    certificate_pem: bytes
    ca_pem: bytes
    cluster: str = "test"
    key_file: Path = Path()
    certificate_file: Path = Path()


class Authority:
    """A cluster's certificate authority."""

    def __init__(self) -> None:
        self._key, self._ca = authority.new_authority("0" * 16)

    def certify(self, device: str) -> Certificates:
        key = authority.new_key()
        certificate = authority.issue(self._key, self._ca, device, key.public_key())
        pem = authority.certificate_pem
        return Certificates(authority.key_pem(key), pem(certificate), pem(self._ca))


class MemoryWires:
    def __init__(self) -> None:
        self._network = MemoryNetwork()

    def transport(self, device: str):
        return self._network.transport(device)

    def cut(self, sender: str, device: str) -> None:
        self._network.cut(sender, device)

    def link(self, sender: str, device: str, epoch: int, outbox, on_broken):
        """An open link that sends whatever `outbox` yields."""
        link = MemoryLink(device, outbox, on_broken)
        self._network.join(sender, device, epoch, link)
        return link

    def close(self) -> None:
        pass


class GrpcWires:
    """A gRPC server with mutual TLS per device, and a cable per pair of devices."""

    def __init__(self) -> None:
        self._authority = Authority()
        self._certificates: dict[str, Certificates] = {}
        self._servers: dict[str, Server] = {}
        self._cables: dict[tuple[str, str], Cable] = {}

    def transport(self, device: str) -> GrpcTransport:
        self._certificates[device] = self._authority.certify(device)
        transport = GrpcTransport(lambda to: self.channel(device, to), peer_device)
        self._servers[device] = serve(self._certificates[device], [transport.add_to], 0, threads=8)
        return transport

    def channel(self, sender: str, device: str) -> grpc.Channel:
        if (sender, device) not in self._cables:
            self._cables[sender, device] = Cable(self._servers[device].port)
        cable = self._cables[sender, device]
        return connect(self._certificates[sender], device, "127.0.0.1", cable.port)

    def cut(self, sender: str, device: str) -> None:
        self._cables[sender, device].cut()

    def link(self, sender: str, device: str, epoch: int, outbox, on_broken):
        link = GrpcLink(device, self.channel(sender, device), epoch, outbox, on_broken)
        link.open()
        return link

    def close(self) -> None:
        for cable in self._cables.values():
            cable.cut()
        for server in self._servers.values():
            server.close(0)
