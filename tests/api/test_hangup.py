"""A client that goes away frees its sequences; one that reads slowly harms nobody."""

from __future__ import annotations

import json
import socket
from typing import Any

import httpx
import openai
import pytest

from edged.api.limits import HttpLimits
from edged.api.server import HttpServer
from tests.api.conftest import StartServer
from tests.api.parrot import MODEL, Parrot

SOON = 30  # seconds: far more than any of this takes


def post(server: HttpServer, path: str = "/v1/chat/completions", **body: Any) -> socket.socket:
    """A connection on which the request has been sent, and nothing read."""
    content = json.dumps(body).encode()
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that a slow reader shows early
    line.settimeout(SOON)
    line.connect(("127.0.0.1", server.address.port))
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    line.sendall(head.encode() + content)
    return line


def say(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def metric(server: HttpServer, name: str) -> float:
    text = httpx.get(f"http://{server.address}/metrics", trust_env=False, verify=False).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def test_the_client_leaves_a_stream(client: openai.OpenAI, parrot: Parrot) -> None:
    stream = client.chat.completions.create(model=MODEL, messages=say("hesitate"), stream=True)
    heard = next(chunk for chunk in stream if chunk.choices[0].delta.content)
    assert heard.choices[0].delta.content == "well "
    assert not parrot.generation().cancelled.is_set()
    stream.close()
    assert parrot.generation().cancelled.wait(SOON)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_the_client_leaves_before_the_first_token(
    server: HttpServer, parrot: Parrot, stream: bool, count: int
) -> None:
    line = post(server, messages=say("silence"), stream=stream, n=count)
    generations = [parrot.generation(index) for index in range(count)]
    line.close()
    assert all(generation.cancelled.wait(SOON) for generation in generations)


def test_the_client_leaves_while_its_prompt_is_read(server: HttpServer, parrot: Parrot) -> None:
    parrot.gate.clear()
    line = post(server, messages=say("silence"), n=4)
    assert parrot.entered.wait(SOON)
    line.close()
    with httpx.Client(
        base_url=f"http://{server.address}", trust_env=False, verify=False, timeout=SOON
    ) as http:
        while metric(server, "edged_http_hangups_total") == 0:  # each turn is a round trip to the server
            assert http.get("/health").status_code == 200
    parrot.gate.set()
    assert parrot.generation().cancelled.wait(SOON)
    server.close()  # the worker threads have ended
    assert len(parrot.generations) == 1  # the other three were not even queued


def test_leaving_frees_the_place(start_server: StartServer, parrot: Parrot) -> None:
    server = start_server(limits=HttpLimits(completions=1))
    line = post(server, messages=say("silence"))
    parrot.generation()
    with httpx.Client(
        base_url=f"http://{server.address}", trust_env=False, verify=False, timeout=SOON
    ) as http:
        assert http.post("/v1/completions", json={"prompt": "hi"}).status_code == 429
        line.close()
        assert parrot.generation().cancelled.wait(SOON)
        while (answer := http.post("/v1/completions", json={"prompt": "hi"})).status_code == 429:
            pass
        assert answer.status_code == 200


def test_one_of_several_fails_and_all_are_cancelled(server: HttpServer, parrot: Parrot) -> None:
    answer = httpx.post(
        f"http://{server.address}/v1/completions",
        json={"prompt": ["silence", "hesitate", "break"]},
        trust_env=False,
        timeout=SOON,
    )
    assert answer.status_code == 503
    assert all(generation.cancelled.is_set() for generation in parrot.generations)
    assert len(parrot.generations) == 3


def test_one_of_several_cannot_be_queued(server: HttpServer, parrot: Parrot) -> None:
    answer = httpx.post(
        f"http://{server.address}/v1/completions",
        json={"prompt": ["silence", "full", "silence"]},
        trust_env=False,
        timeout=SOON,
    )
    assert answer.status_code == 429
    assert [generation.cancelled.is_set() for generation in parrot.generations] == [True]


def test_a_slow_reader_holds_nobody_up_and_is_cut_off(start_server: StartServer, parrot: Parrot) -> None:
    server = start_server(limits=HttpLimits(stall_s=0.3))
    line = post(server, messages=say("flood"), stream=True)
    answer = httpx.post(
        f"http://{server.address}/v1/completions", json={"prompt": "hi", "max_tokens": 2}, trust_env=False
    )
    assert answer.json()["usage"]["completion_tokens"] == 2
    assert parrot.generation().cancelled.wait(SOON)
    line.close()


def test_a_silent_stream_is_kept_alive(start_server: StartServer, parrot: Parrot) -> None:
    server = start_server(limits=HttpLimits(headers_s=0.01, ping_s=0.01))
    line = post(server, messages=say("silence"), stream=True)
    heard = b""
    while heard.count(b": still working\n\n") < 2:
        heard += line.recv(4096)
    assert heard.startswith(b"HTTP/1.1 200")
    line.close()
    assert parrot.generation().cancelled.wait(SOON)


def test_pings_do_not_disturb_the_client(start_server: StartServer, parrot: Parrot) -> None:
    server = start_server(limits=HttpLimits(headers_s=0.001, ping_s=0.001))
    with openai.OpenAI(base_url=f"http://{server.address}/v1", api_key="unused", max_retries=0) as client:
        stream = client.chat.completions.create(model=MODEL, messages=say("hesitate"), stream=True)
        heard = next(chunk.choices[0].delta.content for chunk in stream if chunk.choices[0].delta.content)
        parrot.generation().release()
        heard += "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert heard == "well "
