"""Health, metrics and the root."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.api.parrot import MODEL, House, Parrot


def samples(http: httpx.Client) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_health(http: httpx.Client, house: House) -> None:
    answer = http.get("/health")
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "ok",
        "state": "ready",
        "model": MODEL,
        "epoch": 3,
        "hops": 3,
        "members_alive": 1,
    }
    house.state, house.plan = "loading", None
    answer = http.get("/health")
    assert answer.status_code == 503
    assert answer.json()["state"] == "loading"
    assert http.head("/health").status_code == 503


def test_root_says_what_this_is(http: httpx.Client) -> None:
    answer = http.get("/")
    assert answer.headers["content-type"].startswith("text/plain")
    assert MODEL in answer.text
    assert f"{http.base_url}/v1" in answer.text


def test_metrics_of_the_daemon(http: httpx.Client) -> None:
    found = samples(http)
    hop = (("device", "b"), ("hop", "1"))
    assert found["edged_ready", ()] == 1
    assert found["edged_epoch", ()] == 3
    assert found["edged_members", ()] == 2
    assert found["edged_members_alive", ()] == 1
    assert found["edged_requests_active", ()] == 2
    assert found["edged_requests_waiting", ()] == 1
    assert found["edged_frames_dropped_total", ()] == 5
    assert found["edged_layers_resident_bytes", ()] == 10
    assert found["edged_layers_streamed_bytes", ()] == 7
    assert found["edged_layers_given_up", ()] == 1
    assert found["edged_layers_read_bytes_total", ()] == 99
    assert found["edged_layers_waited_seconds_total", ()] == 0.25
    assert found["edged_hop_compute_seconds_total", hop] == 1.5
    assert found["edged_hop_frames_total", hop] == 7
    assert found["edged_hop_bytes_total", hop] == 4096


@pytest.mark.parametrize("stream", [False, True])
def test_metrics_of_http(http: httpx.Client, stream: bool) -> None:
    body = {"prompt": "a b c d", "max_tokens": 5, "stream": stream}
    assert http.post("/v1/completions", json=body).status_code == 200
    http.post("/v1/completions", json={"prompt": "full"})
    http.get("/v1/models/nothing")
    http.get("/no/such/path")
    found = samples(http)

    def requests(route: str, status: str) -> float:
        return found.get(("edged_http_requests_total", (("route", route), ("status", status))), 0)

    assert requests("/v1/completions", "200") == 1
    assert requests("/v1/completions", "429") == 1
    assert requests("/v1/models/{name}", "404") == 1
    assert requests("other", "404") == 1
    assert found["edged_prompt_tokens_total", ()] == 4
    assert found["edged_prompt_tokens_cached_total", ()] == 2
    assert found["edged_completion_tokens_total", ()] == 5
    assert found["edged_time_to_first_token_seconds_count", ()] == 1
    assert found["edged_time_per_output_token_seconds_count", ()] == 1
    assert found["edged_http_completions", ()] == 0


def test_metrics_of_broken_streams(http: httpx.Client, parrot: Parrot) -> None:
    http.post("/v1/completions", json={"prompt": "break", "stream": True})
    found = samples(http)
    assert found["edged_http_broken_streams_total", ()] == 1
    assert found["edged_http_hangups_total", ()] == 0
    assert parrot.generation().cancelled.is_set()
