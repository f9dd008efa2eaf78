"""Every error in OpenAI's format, with the status and the parameter that are to blame."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from edged.api.app import create_app
from edged.api.error_format import KINDS
from edged.api.limits import HttpLimits
from edged.errors import BY_CODE
from tests.api.conftest import Shared, StartServer
from tests.api.parrot import MODEL, House, Parrot

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]


def error_of(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert "Traceback" not in answer.text
    return dict(body["error"])


def test_every_edged_error_has_a_status() -> None:
    assert set(KINDS) == set(BY_CODE)


@pytest.mark.parametrize(
    ("extra", "param", "code"),
    [
        ({"messages": None}, "messages", "invalid_type"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "hello"}, "messages", "invalid_type"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
        ({"messages": [*HELLO, {"role": "user", "content": 7}]}, "messages[1].content", "invalid_type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content",
            "invalid_type",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}
                ]
            },
            "messages[0].content",
            "unsupported_parameter",
        ),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}]},
            "messages[0].tool_calls",
            "unsupported_parameter",
        ),
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"temperature": 1e999}, "temperature", "invalid_value"),
        ({"top_p": 1.5}, "top_p", "invalid_value"),
        ({"top_k": -5}, "top_k", "invalid_value"),
        ({"min_p": 2}, "min_p", "invalid_value"),
        ({"frequency_penalty": 3}, "frequency_penalty", "invalid_value"),
        ({"presence_penalty": -3}, "presence_penalty", "invalid_value"),
        ({"repeat_penalty": 0}, "repeat_penalty", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_completion_tokens": -2}, "max_completion_tokens", "invalid_value"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 1000}, "n", "invalid_value"),
        ({"stop": 3}, "stop", "invalid_type"),
        ({"stop": ["a", 3]}, "stop[1]", "invalid_type"),
        ({"stop": [str(i) for i in range(17)]}, "stop", "invalid_value"),
        ({"logit_bias": {"cat": 1}}, "logit_bias.cat", "invalid_type"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "invalid_value"),
        ({"logit_bias": {"-5": 1}}, "logit_bias", "invalid_value"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        ({"tool_choice": "required"}, "tool_choice", "unsupported_parameter"),
        ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"response_format": "json"}, "response_format", "unsupported_parameter"),
        ({"logprobs": True}, "logprobs", "unsupported_parameter"),
        ({"top_logprobs": 3}, "top_logprobs", "unsupported_parameter"),
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
        ({"stream": "often"}, "stream", "invalid_type"),
        ({"stream_options": 3}, "stream_options", "invalid_type"),
        ({"model": 3}, "model", "invalid_type"),
    ],
)
def test_chat_parameters(asked: httpx.Client, extra: dict[str, Any], param: str, code: str) -> None:
    # json.dumps rather than httpx's own: it writes Infinity, as careless clients do.
    answer = asked.post(CHAT, content=json.dumps({"messages": HELLO, **extra}))
    error = error_of(answer)
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert (error["param"], error["code"]) == (param, code)
    assert param in error["message"]


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [1, -1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": ["a"] * 33}, "prompt"),
        ({"prompt": ["a"] * 9, "n": 4}, "prompt"),
        ({"echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"logprobs": 0}, "logprobs"),
        ({"logprobs": 5}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_completion_parameters(asked: httpx.Client, extra: dict[str, Any], param: str) -> None:
    answer = asked.post(TEXT, json={"prompt": "hello", **extra})
    assert answer.status_code == 400
    assert error_of(answer)["param"] == param


@pytest.mark.parametrize(
    "harmless",
    [
        {"tools": []},
        {"tools": None, "tool_choice": None},
        {"tools": [{"type": "function"}], "tool_choice": "none"},
        {"functions": [{"name": "f"}], "function_call": "none"},
        {"tool_choice": "auto"},
        {"response_format": {"type": "text"}},
        {"response_format": None},
        {"logprobs": False},
        {"top_logprobs": 0},
        {"modalities": ["text"]},
        {"max_tokens": -1, "top_k": -1, "top_p": 0, "seed": -1},
        {"max_tokens": 5.0, "n": None, "stop": None, "stream": None, "temperature": None},
        {"stop": [""], "stream_options": None, "logit_bias": None},
        {"metadata": {"a": "b"}, "store": True, "reasoning_effort": "low", "parallel_tool_calls": True},
        {"model": ""},
        {"seed": 2**70},
    ],
)
def test_what_clients_send_without_meaning_anything(asked: httpx.Client, harmless: dict[str, Any]) -> None:
    answer = asked.post(CHAT, json={"messages": HELLO, **harmless})
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == MODEL


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}', "invalid_json"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b"[]", "invalid_type"),
        (b"3", "invalid_type"),
        (b"null", "invalid_type"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_bodies_that_are_no_request(asked: httpx.Client, path: str, body: bytes, code: str) -> None:
    answer = asked.post(path, content=body)
    assert answer.status_code == 400
    assert error_of(answer)["code"] == code


def test_a_body_of_braces_cannot_format_the_message(asked: httpx.Client) -> None:
    content = [{"type": "image_url", "{why}": "{0}"}]
    answer = asked.post(CHAT, json={"messages": [{"role": "user", "content": content}]})
    assert answer.status_code == 400
    assert "image_url" in error_of(answer)["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("subject", "status", "param", "code"),
    [
        ("full", 429, None, "overloaded"),
        ("refuse", 400, None, "invalid_request"),
        ("w " * 101, 400, "messages", "context_length_exceeded"),
        ("overflow later", 400, "messages", "context_length_exceeded"),
        ("bug", 500, None, "internal_error"),
        ("crash", 500, None, "internal_error"),
    ],
)
def test_errors_before_the_first_token_keep_their_status(
    asked: httpx.Client, stream: bool, subject: str, status: int, param: str | None, code: str
) -> None:
    answer = asked.post(CHAT, json={"messages": [{"role": "user", "content": subject}], "stream": stream})
    error = error_of(answer)
    assert answer.status_code == status
    assert (error["param"], error["code"]) == (param, code)
    assert "secret" not in answer.text
    assert ("retry-after" in answer.headers) == (status == 429)


def test_the_overflow_of_a_plain_prompt_names_it(asked: httpx.Client) -> None:
    answer = asked.post(TEXT, json={"prompt": "w " * 101})
    assert error_of(answer)["param"] == "prompt"


@pytest.mark.parametrize(("subject", "code"), [("break", "ring_broken"), ("fizzle", "ring_error")])
def test_a_broken_answer_that_is_not_streamed(
    asked: httpx.Client, shared: Shared, subject: str, code: str
) -> None:
    def release() -> None:
        shared[1].generation().release()

    helper = threading.Thread(target=release)
    helper.start()
    answer = asked.post(CHAT, json={"messages": [{"role": "user", "content": subject}]})
    helper.join()
    assert answer.status_code == 503
    assert error_of(answer)["code"] == code
    assert answer.headers["retry-after"]


def test_an_error_in_a_stream_is_its_last_event(asked: httpx.Client) -> None:
    answer = asked.post(CHAT, json={"messages": [{"role": "user", "content": "break"}], "stream": True})
    assert answer.status_code == 200
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert json.loads(events[-1])["error"]["code"] == "ring_broken"
    assert "[DONE]" not in answer.text


@pytest.mark.parametrize("state", ["planning", "loading"])
def test_before_the_first_ring(asked: httpx.Client, shared: Shared, state: str) -> None:
    house = shared[2]
    house.state, house.plan = state, None
    answer = asked.post(CHAT, json={"messages": HELLO})
    assert answer.status_code == 503
    assert error_of(answer)["code"] == "not_ready"
    assert answer.headers["retry-after"]


@pytest.mark.parametrize("state", ["idle", "failed"])
def test_without_a_ring_the_head_decides(asked: httpx.Client, shared: Shared, state: str) -> None:
    house = shared[2]
    house.state, house.plan = state, None
    assert asked.post(CHAT, json={"messages": HELLO}).status_code == 200
    answer = asked.post(CHAT, json={"messages": [{"role": "user", "content": "unloaded"}]})
    assert answer.status_code == 503
    assert error_of(answer)["code"] == "model_error"


def test_while_the_ring_changes_requests_go_on(asked: httpx.Client, shared: Shared) -> None:
    shared[2].state = "planning"  # the plan of before is still there
    assert asked.post(CHAT, json={"messages": HELLO}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/embeddings", 404, "not_found"),
        ("POST", "/nowhere", 404, "not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/nothing", 404, "model_not_found"),
    ],
)
def test_routes_that_are_not_there(
    asked: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    answer = asked.request(method, path)
    assert answer.status_code == status
    assert error_of(answer)["code"] == code
    assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize("path", ["/v1//models", "//v1/models/", "/v1/models//"])
def test_careless_slashes(asked: httpx.Client, path: str) -> None:
    answer = asked.get(f"{asked.base_url}".rstrip("/") + path)
    assert answer.json()["data"][0]["id"] == MODEL


def test_a_body_above_the_limit(start_server: StartServer, parrot: Parrot) -> None:
    server = start_server(limits=HttpLimits(body_bytes=1000))
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 1000}]}).encode()
    small = json.dumps({"messages": HELLO}).encode()

    def pieces() -> Any:  # chunked: the length is not declared
        yield from (body[:500], body[500:])

    with httpx.Client(base_url=f"http://{server.address}", trust_env=False, verify=False) as http:
        for content in (body, pieces()):
            answer = http.post(CHAT, content=content)
            assert answer.status_code == 413
            assert error_of(answer)["code"] == "request_too_large"
        assert http.post(CHAT, content=small).status_code == 200
    assert len(parrot.generations) == 1


def test_too_many_at_once(start_server: StartServer) -> None:
    server = start_server(limits=HttpLimits(completions=2))
    with httpx.Client(base_url=f"http://{server.address}", trust_env=False, verify=False) as http:
        answer = http.post(CHAT, json={"messages": HELLO, "n": 3})
        assert answer.status_code == 429
        assert error_of(answer)["code"] == "overloaded"
        assert http.post(CHAT, json={"messages": HELLO, "n": 2}).status_code == 200


def test_an_error_nobody_foresaw(parrot: Parrot, house: House) -> None:
    def fail() -> None:
        raise ZeroDivisionError("a secret of the inside")

    house.status = fail  # type: ignore[method-assign, assignment]
    # In memory, so that anything raised past the outermost layer fails the test.
    with TestClient(create_app(parrot, house, None), base_url="http://localhost") as client:
        answer = client.get("/health")
    assert answer.status_code == 500
    assert error_of(answer)["code"] == "internal_error"  # type: ignore[arg-type]
    assert "secret" not in answer.text
