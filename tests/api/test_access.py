"""Who is let in: keys, names in Host, pages of other origins."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from edged.api.server import HttpServer
from edged.errors import SettingsError
from edged.settings import HostPort
from tests.api.conftest import Shared, StartServer
from tests.api.parrot import MODEL, House, Parrot

KEY = "correct-horse-battery"
CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    "path", ["/", "/metrics", "/v1/models", f"/v1/models/{MODEL}", "/v1//models", "/nowhere"]
)
@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        KEY,
        "Bearer",
        "Bearer x",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Basic {KEY}",
        "Bearer \xe9\xff",
    ],
)
def test_every_route_wants_the_key(keyed: httpx.Client, path: str, given: str | None) -> None:
    headers = {} if given is None else {"authorization": given.encode("latin-1")}
    answer = keyed.get(url_of(keyed) + path, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == (
        "invalid_request_error",
        "invalid_api_key",
        None,
    )
    assert KEY not in answer.text


def url_of(client: httpx.Client) -> str:
    """To put paths behind that httpx would tidy up."""
    return f"http://{client.base_url.netloc.decode()}"


@pytest.fixture(scope="module")
def keyed() -> Iterator[httpx.Client]:
    server = HttpServer(Parrot(), House(), HostPort("127.0.0.1", 0), KEY)
    server.start()
    with httpx.Client(base_url=f"http://{server.address}", trust_env=False, verify=False) as client:
        yield client
    server.close()


@pytest.mark.parametrize("path", ["/health", "//health", "/health/"])
def test_health_is_open_and_names_no_device(keyed: httpx.Client, path: str) -> None:
    answer = keyed.get(url_of(keyed) + path)
    assert answer.status_code == 200
    assert "attic" not in answer.text
    assert "10.0.0." not in answer.text


@pytest.mark.parametrize(
    "path", ["/health/../metrics", "/health%2f..%2fmetrics", "/metrics?/health", "/health;/metrics"]
)
def test_no_way_round_by_the_open_route(keyed: httpx.Client, path: str) -> None:
    url = keyed.base_url
    with socket.create_connection((url.host, url.port or 0), 30) as line:
        line.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: line.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 401")


def test_with_the_key(keyed: httpx.Client) -> None:
    with openai.OpenAI(base_url=f"{url_of(keyed)}/v1", api_key=KEY, max_retries=0) as client:
        assert client.chat.completions.create(model=MODEL, messages=BODY["messages"]).choices  # type: ignore[arg-type]
    with (
        openai.OpenAI(base_url=f"{url_of(keyed)}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()
    answer = keyed.get("/metrics", headers={"authorization": f"bearer  {KEY}"})
    assert answer.status_code == 200
    # With a key neither names nor origins matter: no page knows it.
    headers = {"authorization": f"Bearer {KEY}", "host": "edged.example", "origin": "https://chat.example"}
    answer = keyed.post(CHAT, json=BODY, headers=headers)
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("LOCALHOST:1234", True),
        ("localhost.", True),
        ("127.0.0.1:80", True),
        ("127.8.9.10", True),
        ("[::1]:8080", True),
        ("evil.example", False),
        ("evil.example:7480", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("192.168.1.7", False),
        ("[::2]", False),
        ("0.0.0.0", False),
        ("evil.example@localhost", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/health"])
def test_without_a_key_only_names_of_this_machine(
    asked: httpx.Client, path: str, host: str, allowed: bool
) -> None:
    answer = asked.get(path, headers={"host": host})
    assert answer.status_code == (200 if allowed else 403)
    assert allowed or answer.json()["error"]["code"] == "host_not_allowed"


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:1"},
        {"origin": "chrome-extension://abc"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_without_a_key_no_pages_of_other_origins(
    asked: httpx.Client, shared: Shared, headers: dict[str, str]
) -> None:
    answer = asked.post(CHAT, content=json.dumps(BODY), headers={"content-type": "text/plain", **headers})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "origin_not_allowed"
    assert not shared[1].generations
    preflight = asked.options(CHAT, headers={"access-control-request-method": "POST", **headers})
    assert preflight.status_code == 403
    assert not [name for name in preflight.headers if name.startswith("access-control")]


def test_without_a_key_its_own_origin_may(asked: httpx.Client, shared: Shared) -> None:
    headers = {"origin": f"http://{shared[0].address}", "sec-fetch-site": "same-origin"}
    assert asked.post(CHAT, json=BODY, headers=headers).status_code == 200
    # Somebody follows a link from a page, or types the address.
    assert asked.get("/", headers={"sec-fetch-site": "cross-site"}).status_code == 200
    assert asked.get("/", headers={"sec-fetch-site": "none"}).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1"])
def test_beyond_loopback_a_key_is_needed(start_server: StartServer, host: str) -> None:
    with pytest.raises(SettingsError, match="API key"):
        start_server(host)


def test_a_name_that_stands_for_another_address_needs_a_key(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def both(*_: object, **__: object) -> list[object]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0)),
        ]

    monkeypatch.setattr("edged.api.listen.socket.getaddrinfo", both)
    with pytest.raises(SettingsError, match="API key"):
        start_server("localhost")


@pytest.mark.parametrize("key", ["", " ", "two words", "schlüssel", "tab\t", "line\n"])
def test_a_key_that_no_client_could_send(start_server: StartServer, key: str) -> None:
    with pytest.raises(SettingsError, match="printable"):
        start_server("0.0.0.0", key)


def test_beyond_loopback_with_a_key(start_server: StartServer) -> None:
    server = start_server("0.0.0.0", KEY)
    url = f"http://127.0.0.1:{server.address.port}"
    assert httpx.get(f"{url}/v1/models", trust_env=False, verify=False).status_code == 401
    answer = httpx.get(
        f"{url}/v1/models", headers={"authorization": f"Bearer {KEY}"}, trust_env=False, verify=False
    )
    assert answer.status_code == 200
