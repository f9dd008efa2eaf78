"""The two transports behind one face, with cables that can be cut."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc

from edged.errors import UntrustedPeerError
from edged.ring.grpc_transport import GrpcLink, GrpcTransport
from edged.ring.memory import MemoryLink, MemoryNetwork

MAX_MESSAGE = [("grpc.max_receive_message_length", 64 * 2**20), ("grpc.use_local_subchannel_pool", 1)]
DEVICE_KEY = "test-device"


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


class _Named(grpc.StreamUnaryClientInterceptor):
    """Stands in for the certificate: says who calls."""

    def __init__(self, device: str) -> None:
        self._device = device

    def intercept_stream_unary(self, continuation, details, requests):
        metadata = (*details.metadata, (DEVICE_KEY, self._device))
        return continuation(details._replace(metadata=metadata), requests)


def _named_device(context: grpc.ServicerContext) -> str:
    for key, value in context.invocation_metadata():
        if key == DEVICE_KEY:
            return value
    raise UntrustedPeerError("a caller without a certificate")


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
    """A gRPC server per device, and a cable per pair of devices."""

    def __init__(self) -> None:
        self._servers: dict[str, tuple[grpc.Server, ThreadPoolExecutor, int]] = {}
        self._cables: dict[tuple[str, str], Cable] = {}

    def transport(self, device: str) -> GrpcTransport:
        pool = ThreadPoolExecutor(8, thread_name_prefix=f"server-{device}")
        server = grpc.server(pool, options=MAX_MESSAGE)
        transport = GrpcTransport(lambda to: self._channel(device, to), _named_device)
        transport.add_to(server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        self._servers[device] = (server, pool, port)
        return transport

    def _channel(self, sender: str, device: str) -> grpc.Channel:
        if (sender, device) not in self._cables:
            self._cables[sender, device] = Cable(self._servers[device][2])
        cable = self._cables[sender, device]
        channel = grpc.insecure_channel(f"127.0.0.1:{cable.port}", options=MAX_MESSAGE)
        return grpc.intercept_channel(channel, _Named(sender))

    def cut(self, sender: str, device: str) -> None:
        self._cables[sender, device].cut()

    def link(self, sender: str, device: str, epoch: int, outbox, on_broken):
        link = GrpcLink(device, self._channel(sender, device), epoch, outbox, on_broken)
        link.open()
        return link

    def close(self) -> None:
        for cable in self._cables.values():
            cable.cut()
        for server, pool, _ in self._servers.values():
            server.stop(None).wait()
            pool.shutdown()
