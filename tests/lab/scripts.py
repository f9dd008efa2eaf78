"""Small programs that tests of the emulated home run on its devices."""

from __future__ import annotations

import sys

ANNOUNCE = """
import socket, sys
from zeroconf import ServiceInfo, Zeroconf
zeroconf = Zeroconf()
zeroconf.register_service(ServiceInfo(
    "_edgedlab._tcp.local.", "here._edgedlab._tcp.local.", port=7, addresses=[socket.inet_aton(sys.argv[1])]))
print("announced", flush=True)
import signal; signal.pause()
"""

BROWSE = """
import queue, socket
from zeroconf import ServiceBrowser, Zeroconf
found = queue.Queue()
def changed(zeroconf, service_type, name, state_change):
    found.put((service_type, name))
zeroconf = Zeroconf()
browser = ServiceBrowser(zeroconf, "_edgedlab._tcp.local.", handlers=[changed])
service_type, name = found.get(timeout=20)
info = zeroconf.get_service_info(service_type, name)
print(name, socket.inet_ntoa(info.addresses[0]))
zeroconf.close()
"""

SERVE = """
import socket, sys
server = socket.create_server(("0.0.0.0", 9))
print("listening", flush=True)
while True:
    client, _ = server.accept()
    client.sendall(b"x" * int(sys.argv[1]))
    client.close()
"""

READ = """
import socket, sys
client = socket.create_connection((sys.argv[1], 9), timeout=5)
size = 0
while piece := client.recv(65536):
    size += len(piece)
print(size)
"""

# Bounces one byte COUNT times off an echo server and prints the quickest round trip in seconds.
BOUNCE = """
import socket, sys, time
client = socket.create_connection((sys.argv[1], 9), timeout=10)
client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
times = []
for _ in range(int(sys.argv[2])):
    began = time.perf_counter()
    client.sendall(b"x")
    assert client.recv(1) == b"x"
    times.append(time.perf_counter() - began)
print(min(times), max(times))
"""

ECHO = """
import socket
server = socket.create_server(("0.0.0.0", 9))
print("listening", flush=True)
while True:
    client, _ = server.accept()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while piece := client.recv(65536):
        client.sendall(piece)
"""

GRPC_ECHO = """
import grpc
from concurrent.futures import ThreadPoolExecutor
class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.stream_stream_rpc_method_handler(lambda messages, context: messages)
server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", -1)])
server.add_generic_rpc_handlers((Echo(),))
server.add_insecure_port("0.0.0.0:9")
server.start()
print("listening", flush=True)
server.wait_for_termination()
"""

# Sends COUNT messages of SIZE random bytes over one stream and prints how many came back unharmed.
GRPC_SEND = """
import grpc, os, sys
size, count = int(sys.argv[2]), int(sys.argv[3])
sent = [os.urandom(size) for _ in range(count)]
with grpc.insecure_channel(sys.argv[1] + ":9", options=[("grpc.max_receive_message_length", -1)]) as channel:
    back = channel.stream_stream("/echo/echo")(iter(sent), timeout=30)
    print(sum(one == other for one, other in zip(sent, back, strict=True)))
"""


def python(script: str, *args: str) -> list[str]:
    return [sys.executable, "-c", script, *args]
