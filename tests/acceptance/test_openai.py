"""The official openai client against a ring of three."""

from __future__ import annotations

import json
import signal
import sys

from edged.rpc.messages import StatusAnswer
from tests.acceptance.cluster import BASE_URL, CLIENT, HTTP, MODEL, Cluster, chat_job, text_job

EIGHT = [
    "Name a colour.",
    "What is 2 + 2?",
    "Write a line about the moon.",
    "Who wrote Hamlet?",
    "Say hello in French.",
    "What do cows eat?",
    "Name a planet.",
    "Why do leaves fall?",
]
LONG = 1500  # tokens; more than a test would wait for


def idle(status: StatusAnswer) -> bool:
    return status.active_requests == 0 and status.waiting_requests == 0


def test_stream_and_whole_answer_agree(cluster: Cluster) -> None:
    for job in (chat_job, text_job):
        usage = {"include_usage": True}
        whole, stream = cluster.openai(
            [job("Tell me of rain."), job("Tell me of rain.", stream=True, stream_options=usage)]
        )
        assert whole["error"] is None
        assert stream["error"] is None
        assert stream["text"] == whole["text"] != ""
        assert stream["pieces"] > 5, "a stream comes piece by piece"
        assert stream["finish_reason"] == whole["finish_reason"]
        assert stream["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
        assert whole["usage"]["total_tokens"] == (
            whole["usage"]["prompt_tokens"] + whole["usage"]["completion_tokens"]
        )


def test_eight_at_once_answer_as_alone(cluster: Cluster) -> None:
    jobs = [chat_job(prompt, 32, stream=number % 2 == 0) for number, prompt in enumerate(EIGHT)]
    alone = cluster.openai(jobs)
    together = cluster.openai(jobs, together=True)
    assert [answer["error"] for answer in alone + together] == [None] * 16
    assert [answer["text"] for answer in together] == [answer["text"] for answer in alone]
    assert len({answer["text"] for answer in alone}) == len(EIGHT), "answers got mixed up"


def test_a_client_that_hangs_up_frees_its_sequence(cluster: Cluster) -> None:
    for how in (signal.SIGKILL, signal.SIGTERM):
        cluster.head.wait_until(idle, "idle head")
        client = cluster.device.popen(["sh", "-c", 'exec "$0" "$1" < "$2"', *client_that_hangs_up(cluster)])
        client.wait_for_line("has read enough")
        assert cluster.head.status().active_requests == 1
        (client.kill if how == signal.SIGKILL else client.terminate)()
        client.wait()
        cluster.head.wait_until(idle, "free sequence", timeout=5)


def client_that_hangs_up(cluster: Cluster) -> list[str]:
    task = {"base_url": BASE_URL, "jobs": [text_job("Count:", LONG, stream=True)], "hang_up_after": 3}
    path = cluster.device.root / "task.json"
    path.write_text(json.dumps(task))
    return [sys.executable, str(CLIENT), str(path)]


def test_more_requests_than_sequences_all_get_their_answer(cluster: Cluster) -> None:
    plan = cluster.head.status().plan
    assert plan is not None
    jobs = [text_job(f"Number {number} is", 4) for number in range(plan.context.n_seq_max + 4)]
    answers = cluster.openai(jobs, together=True)
    assert all(answer["error"] is None and answer["text"] for answer in answers)


def test_mistakes_are_answered_as_openai_does(cluster: Cluster) -> None:
    plan = cluster.head.status().plan
    assert plan is not None
    too_long = "word " * (plan.context.n_ctx + 50)
    long, unknown, wrong, fine = cluster.openai(
        [
            text_job(too_long, 4),
            chat_job("Hi", model="no-such-model"),
            chat_job("Hi", temperature=-3),
            chat_job("Hi", 4),
        ]
    )
    assert long["error"]["kind"] == "BadRequestError"
    assert long["error"]["body"]["code"] == "context_length_exceeded"
    assert str(plan.context.n_ctx) in long["error"]["body"]["message"]
    assert unknown["error"]["kind"] == "NotFoundError"
    assert unknown["error"]["body"]["code"] == "model_not_found"
    assert wrong["error"]["status"] == 400
    assert "temperature" in wrong["error"]["body"]["message"] + str(wrong["error"]["body"].get("param"))
    for refused in (long, unknown, wrong):
        assert "\n" not in refused["error"]["body"]["message"]
    assert fine["error"] is None


def test_models_health_and_metrics(cluster: Cluster) -> None:
    def get(path: str) -> tuple[int, str]:
        script = (
            "import sys, urllib.request\n"
            "answer = urllib.request.urlopen(sys.argv[1])\n"
            "print(answer.status)\nprint(answer.read().decode())"
        )
        done = cluster.head.place.run([sys.executable, "-c", script, f"http://{HTTP}{path}"]).stdout
        status, _, body = done.partition("\n")
        return int(status), body

    status, body = get("/v1/models")
    assert status == 200
    assert MODEL in [model["id"] for model in json.loads(body)["data"]]
    assert get("/health")[0] == 200
    metrics = get("/metrics")[1]
    assert "# TYPE edged_" in metrics
