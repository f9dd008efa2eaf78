"""Three devices hold one model and answer exactly as the whole model does."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from edged.frontdoor.client import open_front_door
from edged.serving.generation import GenerateRequest, Sampling
from edged.settings import daemon_socket
from edged.store.manifest import Manifest
from tests.acceptance.cluster import MODEL, Cluster, text_job
from tests.acceptance.reference import greedy_chats, greedy_texts, whole_model

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea, there lived",
    "def fibonacci(n):\n    ",
    "The three most important things about keeping bees are",
    "Q: Why is the sky blue?\nA:",
]
TOKENS = 64


def manifest(cluster: Cluster) -> Manifest:
    (path,) = (cluster.device.home / "store" / "models").glob("*.manifest")
    return Manifest.unpack(path.read_bytes())


def held_parts(home: Path) -> dict[str, Path]:
    """SHA-256 -> file, for every part in a device's store; the name is checked against the content."""
    parts = {}
    for path in (home / "store" / "parts").iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem, f"{path} is damaged"
        parts[path.stem] = path
    return parts


def test_they_form_one_cluster_and_each_runs_a_share(cluster: Cluster) -> None:
    status = cluster.head.status()
    assert sorted(member.name for member in status.members) == ["attic", "cellar", "head"]
    assert all(member.state == "alive" for member in status.members)
    assert status.plan is not None
    assert len(status.plan.devices) == 3
    assert status.plan.head == status.device
    for worker in cluster.workers:
        seen = worker.wait_until(lambda theirs: theirs.plan is not None, "plan")
        assert seen.plan == status.plan
        assert seen.cluster == status.cluster


def test_text_is_exactly_that_of_the_whole_model(cluster: Cluster) -> None:
    plan = cluster.head.status().plan
    assert plan is not None
    answers = cluster.openai([text_job(prompt, TOKENS) for prompt in PROMPTS])
    with whole_model(plan.context, threads=1) as llama:
        expected = greedy_texts(llama, PROMPTS, TOKENS)
    assert [answer["error"] for answer in answers] == [None] * len(PROMPTS)
    assert [answer["text"] for answer in answers] == expected


def test_tokens_from_the_terminal_are_exact_too(cluster: Cluster) -> None:
    plan = cluster.head.status().plan
    assert plan is not None
    flags = ("--temperature", "0", "--max-tokens", str(TOKENS))
    prompts = ["Name three fruits.", "What is a glacier?"]
    shown = [cluster.head.place.edged("run", MODEL, prompt, *flags).stdout for prompt in prompts]
    with whole_model(plan.context, threads=1) as llama:
        expected = greedy_chats(llama, prompts, TOKENS)
    assert shown == [text + "\n" for text in expected]


def test_a_prompt_of_many_chunks_is_exact(cluster: Cluster) -> None:
    """Longer than n_ubatch: the ring gets it as several frames, several devices compute at once."""
    plan = cluster.head.status().plan
    assert plan is not None
    prompt = " ".join(str(number * number) for number in range(plan.context.n_ubatch))
    (answer,) = cluster.openai([text_job(prompt, 24)])
    assert answer["usage"]["prompt_tokens"] > 2 * plan.context.n_ubatch
    with whole_model(plan.context, threads=1) as llama:
        (expected,) = greedy_texts(llama, [prompt], 24)
    assert answer["text"] == expected


@pytest.mark.parametrize("worker", [0, 1])
def test_any_device_answers(cluster: Cluster, worker: int) -> None:
    """A device that is not the head forwards to it."""
    request = GenerateRequest(prompt=PROMPTS[0], sampling=Sampling(temperature=0), max_tokens=12)
    texts = []
    for daemon in (cluster.head, cluster.workers[worker]):
        with open_front_door(daemon_socket(daemon.place.home)) as client:
            texts.append("".join(event.text for event in client.generate(request)))
    assert texts[0] == texts[1] != ""


def test_a_workers_disk_holds_only_its_own_layers(cluster: Cluster) -> None:
    plan = cluster.head.status().plan
    assert plan is not None
    model = manifest(cluster)
    names = {part.sha256: part.name for part in model.parts}
    statuses = [worker.status() for worker in cluster.workers]
    for worker, status in zip(cluster.workers, statuses, strict=True):
        own = {
            part.name
            for hop in plan.hops_of(status.device)
            for part in model.parts_for(plan.hops[hop].first, plan.hops[hop].last)
        }
        held = {names[sha256] for sha256 in held_parts(worker.place.home)}
        assert held == own, "a worker stores exactly the parts of its windows"
        assert not list((worker.place.home / "store" / "scratch").iterdir())
        total = sum(
            path.stat().st_size for path in (worker.place.home / "store").rglob("*") if path.is_file()
        )
        assert total < sum(part.size for part in model.parts) / 2
