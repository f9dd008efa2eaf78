"""Connections are limited where they begin, and a process without file descriptors still lives."""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path

import pytest

from edged.rpc.bounded_listener import BoundedListener, source
from edged.rpc.listening import listen
from edged.rpc.quiet_loop import QuietErrors
from tests.descriptors import no_descriptor_left

SOON = 10.0


def knock(listener: BoundedListener, host: str = "127.0.0.1") -> socket.socket:
    port = listener.getsockname()[1]
    return socket.create_connection(("127.0.0.1", port), SOON, source_address=(host, 0))


def shut(client: socket.socket) -> bool:
    """Whether the other end has closed; waits for it where nothing else can come."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def test_beyond_the_limit_connections_are_closed_at_once(caplog: pytest.LogCaptureFixture) -> None:
    with BoundedListener(listen(0), most=3) as listener:
        clients = [knock(listener) for _ in range(6)]
        kept = [listener.accept()[0] for _ in range(3)]
        with caplog.at_level(logging.WARNING), pytest.raises(BlockingIOError):
            listener.accept()
        assert [shut(client) for client in clients[3:]] == [True, True, True]
        kept[0].close()  # makes room for one
        clients.append(knock(listener))
        kept.append(listener.accept()[0])
        kept[-1].sendall(b"x")
        assert clients[-1].recv(1) == b"x"
        for one in (*kept, *clients):
            one.close()
    assert caplog.text.count("too many connections") == 1


def test_one_source_leaves_room_for_others() -> None:
    with BoundedListener(listen(0), most=10, most_per_source=2) as listener:
        greedy = [knock(listener, "127.0.0.2") for _ in range(5)]
        kept = [listener.accept()[0] for _ in range(2)]
        modest = knock(listener, "127.0.0.3")
        connection, address = listener.accept()
        assert "127.0.0.3" in str(address[0])
        assert [shut(client) for client in greedy[2:]] == [True, True, True]
        for one in (*kept, *greedy, modest, connection):
            one.close()


def test_without_descriptors_callers_are_turned_away() -> None:
    with BoundedListener(listen(0), most=10) as listener:
        clients = [knock(listener) for _ in range(3)]
        with no_descriptor_left(), pytest.raises(BlockingIOError):
            listener.accept()
        assert all(shut(client) for client in clients)
        later = knock(listener)
        connection, _ = listener.accept()
        for one in (*clients, later, connection):
            one.close()


def test_closing_leaves_no_descriptor() -> None:
    before = len(list(Path("/dev/fd").iterdir()))
    BoundedListener(listen(0), most=1).close()
    assert len(list(Path("/dev/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("fd00::1%eth0", "fd00::/64"),
        ("nonsense", "nonsense"),
    ],
)
def test_sources(address: str, expected: str) -> None:
    assert source(address) == expected


def test_a_loops_errors_are_a_line_each(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async def fail() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(QuietErrors("the door"))
        for _ in range(100):
            loop.call_exception_handler({"message": "no more", "exception": OSError(24, "too many files")})
        loop.call_exception_handler({"message": "something else"})

    with caplog.at_level(logging.WARNING):
        asyncio.run(fail())
    assert [record.getMessage() for record in caplog.records] == [
        "the door: no more: [Errno 24] too many files",
        "the door: something else: no details",
    ]
    assert all(record.exc_info is None for record in caplog.records)
    assert capfd.readouterr().err == ""
