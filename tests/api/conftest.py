"""A real HTTP server on a real port, for each test or for each file; a thread it leaves fails the test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import httpx
import openai
import pytest

from edged.api.limits import HttpLimits
from edged.api.server import HttpServer
from edged.settings import HostPort
from tests.api.parrot import House, Parrot

StartServer = Callable[..., HttpServer]
Shared = tuple[HttpServer, Parrot, House]


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    """One server for all tests of a file that ask for it: many small questions, none of which harms it."""
    parrot, house = Parrot(), House()
    server = HttpServer(parrot, house, HostPort("127.0.0.1", 0))
    server.start()
    yield server, parrot, house
    server.close()


@pytest.fixture
def asked(shared: Shared) -> Iterator[httpx.Client]:
    """A client of the shared server, whose parrot has heard nothing yet and whose house is as at first."""
    server, parrot, house = shared
    parrot.generations.clear()
    vars(house).update(vars(House()))
    with httpx.Client(
        base_url=f"http://{server.address}", timeout=30, trust_env=False, verify=False
    ) as client:
        yield client


@pytest.fixture
def parrot() -> Parrot:
    return Parrot()


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def start_server(parrot: Parrot, house: House) -> Iterator[StartServer]:
    before = set(threading.enumerate())
    servers: list[HttpServer] = []

    def start(
        host: str = "127.0.0.1", api_key: str | None = None, limits: HttpLimits | None = None
    ) -> HttpServer:
        server = HttpServer(parrot, house, HostPort(host, 0), api_key, limits)
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close()
    left = {thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("edged")}
    assert not left


@pytest.fixture
def server(start_server: StartServer) -> HttpServer:
    return start_server()


@pytest.fixture
def http(server: HttpServer) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=f"http://{server.address}", timeout=30, trust_env=False, verify=False
    ) as client:
        yield client


@pytest.fixture
def client(server: HttpServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://{server.address}/v1", api_key="unused", max_retries=0) as client:
        yield client
