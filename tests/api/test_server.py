"""The server itself: ports, garbage, limits on connections, and a clean end."""

from __future__ import annotations

import contextlib
import gc
import json
import socket
import threading
import warnings

import httpx
import openai
import pytest

from edged.api.limits import HttpLimits
from edged.api.server import HttpServer
from edged.errors import PortTakenError, SettingsError
from edged.settings import HostPort
from tests.api.conftest import StartServer
from tests.api.parrot import MODEL, House, Parrot
from tests.api.test_hangup import SOON, post, say
from tests.descriptors import no_descriptor_left


def connect(server: HttpServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.address.port), SOON)


def read_all(line: socket.socket) -> bytes:
    heard = b""
    while chunk := line.recv(65536):
        heard += chunk
    return heard


def error_code(answer: bytes) -> str:
    return str(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"])


def test_port_0_is_reported(server: HttpServer) -> None:
    assert server.address.port > 0
    assert httpx.get(f"http://{server.address}/health", trust_env=False, verify=False).status_code == 200


def test_ipv6(start_server: StartServer) -> None:
    try:
        socket.socket(socket.AF_INET6).bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    server = start_server("::1")
    assert str(server.address).startswith("[::1]:")
    assert httpx.get(f"http://{server.address}/v1/models", trust_env=False, verify=False).status_code == 200


def test_localhost_serves_all_it_stands_for(start_server: StartServer) -> None:
    server = start_server("localhost")
    port = server.address.port
    for found in {entry[4] for entry in socket.getaddrinfo("localhost", port, type=socket.SOCK_STREAM)}:
        host = f"[{found[0]}]" if ":" in str(found[0]) else found[0]
        assert httpx.get(f"http://{host}:{port}/health", trust_env=False, verify=False).status_code == 200


def test_a_taken_port(server: HttpServer, parrot: Parrot, house: House) -> None:
    before = threading.active_count()
    second = HttpServer(parrot, house, server.address)
    with pytest.raises(PortTakenError, match=f"port {server.address.port} .* --http HOST:PORT"):
        second.start()
    second.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 300, "127.0.0.1.1"])
def test_an_address_that_is_none(start_server: StartServer, host: str) -> None:
    with pytest.raises(SettingsError, match="cannot listen"):
        start_server(host)


def test_an_address_of_another_machine(start_server: StartServer) -> None:
    with pytest.raises(SettingsError, match="not an address of this machine"):
        start_server("192.0.2.1", "a-key-long-enough")


def test_the_port_is_free_after_closing(parrot: Parrot, house: House) -> None:
    address = HostPort("127.0.0.1", 0)
    for _ in range(3):
        server = HttpServer(parrot, house, address)
        server.start()
        address = server.address
        httpx.get(f"http://{address}/health", trust_env=False, verify=False)
        server.close()
        server.close()
        with pytest.raises(ConnectionRefusedError):
            connect(server)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",  # a TLS client
        b"hello\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 400_000,
        b"GET / HTTP/1.1\r\n\r\n",  # 1.1 wants a Host
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    ],
)
def test_garbage(server: HttpServer, garbage: bytes) -> None:
    with connect(server) as line:
        line.sendall(garbage)
        try:
            answer = read_all(line)
        except ConnectionResetError:
            answer = b""  # closed with bytes unread: as good
        assert not answer or answer.startswith(b"HTTP/1.1 400")
        assert not answer or error_code(answer) == "bad_http"
    assert httpx.get(f"http://{server.address}/health", trust_env=False, verify=False).status_code == 200


def test_without_file_descriptors_callers_are_turned_away(
    server: HttpServer, capfd: pytest.CaptureFixture[str]
) -> None:
    """A burst takes them all; left alone asyncio would print tracebacks and leave callers waiting."""
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(socket.socket()) for _ in range(5)]
        with no_descriptor_left():
            for caller in callers:
                caller.settimeout(SOON)
                caller.connect(("127.0.0.1", server.address.port))
            for caller in callers:
                with contextlib.suppress(ConnectionResetError):
                    assert caller.recv(1) == b""
    assert httpx.get(f"http://{server.address}/health", trust_env=False, verify=False).status_code == 200
    assert capfd.readouterr().err == ""


def test_a_loops_error_prints_no_traceback(
    start_server: StartServer, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    server = start_server()
    loop = server._server._loop if server._server is not None else None
    assert loop is not None
    told = threading.Event()

    def fail() -> None:
        for _ in range(50):
            loop.call_exception_handler({"message": "no descriptors", "exception": OSError(24, "too many")})
        told.set()

    loop.call_soon_threadsafe(fail)
    assert told.wait(SOON)
    assert [record.getMessage() for record in caplog.records] == ["HTTP: no descriptors: [Errno 24] too many"]
    assert "Traceback" not in capfd.readouterr().err


def test_websockets_are_not_spoken(server: HttpServer) -> None:
    upgrade = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    answer = httpx.get(f"http://{server.address}/v1/realtime", headers=upgrade, trust_env=False, verify=False)
    assert answer.status_code == 404


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"GET /health HT",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea",
    ],
)
def test_a_request_that_never_arrives(start_server: StartServer, start: bytes) -> None:
    server = start_server(limits=HttpLimits(receive_s=0.2, idle_s=1))
    with connect(server) as line:
        line.sendall(start)
        answer = read_all(line)  # ends, because the server hangs up
    if not start.endswith(b"GET /hea"):
        assert answer.startswith(b"HTTP/1.1 408")
        assert error_code(answer) == "timeout"


def test_a_request_in_small_pieces(server: HttpServer) -> None:
    body = json.dumps({"prompt": "hi", "max_tokens": 1, "seed": 1}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    with connect(server) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in (head + "Connection: close\r\n\r\n").encode() + body:
            line.sendall(bytes([byte]))
        assert b"hi/1/0 " in read_all(line)


def test_pipelined_requests_are_answered_in_order(server: HttpServer) -> None:
    def request(word: str, last: bool) -> bytes:
        body = json.dumps({"prompt": word, "max_tokens": 1}).encode()
        close = "Connection: close\r\n" if last else ""
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n{close}Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    with connect(server) as line:
        line.sendall(request("first", False) + request("second", True))
        heard = read_all(line)
    assert 0 < heard.index(b"first/") < heard.index(b"second/")


def test_too_many_connections(start_server: StartServer) -> None:
    server = start_server(limits=HttpLimits(connections=2))
    with connect(server) as first, connect(server), connect(server) as third:
        assert error_code(read_all(third)) == "too_many_connections"
        first.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert read_all(first).startswith(b"HTTP/1.1 200")


def test_closing_ends_an_open_stream_with_an_error(server: HttpServer, parrot: Parrot) -> None:
    with openai.OpenAI(base_url=f"http://{server.address}/v1", api_key="unused", max_retries=0) as client:
        stream = client.chat.completions.create(model=MODEL, messages=say("hesitate"), stream=True)
        assert next(chunk for chunk in stream if chunk.choices[0].delta.content)
        server.close()
        with pytest.raises(openai.APIError, match="stopping"):
            list(stream)
    assert parrot.generation().cancelled.is_set()


def test_closing_answers_who_still_waits(server: HttpServer, parrot: Parrot) -> None:
    line = post(server, messages=say("silence"))
    parrot.generation()
    server.close()
    answer = read_all(line)
    assert answer.startswith(b"HTTP/1.1 503")
    assert error_code(answer) == "stopping"
    assert parrot.generation().cancelled.is_set()
    line.close()


def test_closing_does_not_wait_for_a_reader_that_takes_nothing(
    start_server: StartServer, parrot: Parrot
) -> None:
    server = start_server(limits=HttpLimits(close_s=0.1))
    stuck = post(server, messages=say("flood"), stream=True)
    unfinished = connect(server)
    unfinished.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
    parrot.generation()
    server.close()
    assert parrot.generation().cancelled.is_set()
    stuck.close()
    unfinished.close()


def test_closing_does_not_wait_for_a_head_that_is_still_loading(
    start_server: StartServer, parrot: Parrot
) -> None:
    server = start_server(limits=HttpLimits(close_s=0.1, headers_s=0.01, ping_s=0.01))
    parrot.gate.clear()
    line = post(server, messages=say("silence"), stream=True)
    assert parrot.entered.wait(SOON)
    assert line.recv(4096).startswith(
        b"HTTP/1.1 200"
    )  # a stream begins, so that the client knows it is heard
    server.close()
    assert b'"stopping"' in read_all(line)
    line.close()
    parrot.gate.set()
    assert parrot.generation().cancelled.wait(SOON)
    for thread in threading.enumerate():
        if thread.name.startswith("edged"):
            thread.join(SOON)


def test_while_a_head_loads_the_state_can_be_asked(start_server: StartServer, parrot: Parrot) -> None:
    server = start_server(limits=HttpLimits(completions=20))
    parrot.gate.clear()
    lines = [post(server, messages=say("hello")) for _ in range(20)]
    assert parrot.entered.wait(SOON)
    for path in ("/health", "/metrics", "/v1/models"):
        assert httpx.get(f"http://{server.address}{path}", trust_env=False, verify=False).status_code == 200
    parrot.gate.set()
    for line in lines:
        assert line.recv(4096).startswith(b"HTTP/1.1 200")
        line.close()


def test_closing_leaves_no_socket(start_server: StartServer, parrot: Parrot) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        server = start_server(limits=HttpLimits(close_s=0.1))
        idle = connect(server)
        stuck = post(server, messages=say("flood"), stream=True)
        parrot.generation()
        server.close()
        gc.collect()
    for line in (idle, stuck):
        line.settimeout(SOON)
        with contextlib.suppress(ConnectionResetError):
            read_all(line)  # ends: the other side is closed
        line.close()
