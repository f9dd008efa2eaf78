"""A worker goes away in the middle of an answer: the client sees a pause, and the same text."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from edged.frontdoor.client import open_front_door
from edged.serving.generation import GenerateRequest, Sampling, Usage
from edged.settings import daemon_socket
from tests.acceptance.cluster import FLAGS, Cluster, form_cluster
from tests.lab import Daemon, Device, Home

TOKENS = 120
KILL_AFTER = 25  # tokens
REQUEST = GenerateRequest(
    prompt="The history of bread begins", sampling=Sampling(temperature=0), max_tokens=TOKENS, ignore_eos=True
)


@pytest.fixture(scope="module")
def ring(shared_home: Home) -> Cluster:
    """Three devices; every test puts back what it broke."""
    return form_cluster(shared_home)


def answer(head: Daemon, disturb: Callable[[], object] = lambda: None) -> tuple[str, list[int], Usage]:
    """Text, tokens and usage of REQUEST; `disturb` is called once, in the middle of the stream."""
    text: list[str] = []
    tokens: list[int] = []
    usage: Usage | None = None
    disturbed = False
    with open_front_door(daemon_socket(head.place.home)) as client:
        for event in client.generate(REQUEST):
            text.append(event.text)
            tokens.extend(event.token_ids)
            usage = event.usage or usage
            if len(tokens) >= KILL_AFTER and not disturbed:
                disturbed = True
                disturb()
    assert disturbed
    assert usage is not None
    return "".join(text), tokens, usage


@pytest.fixture(scope="module")
def calm(ring: Cluster) -> tuple[str, list[int]]:
    """What the answer is when nothing happens."""
    text, tokens, usage = answer(ring.head)
    assert usage.completion_tokens == TOKENS == len(tokens)
    return text, tokens


def several(head: Daemon, prompts: list[str], disturb: Callable[[], None]) -> list[tuple[str, list[int]]]:
    """Answers to all prompts at once; `disturb` is called once all of them are in mid-answer."""
    under_way = threading.Barrier(len(prompts), action=disturb)

    def ask(prompt: str) -> tuple[str, list[int]]:
        text: list[str] = []
        tokens: list[int] = []
        waited = False
        with open_front_door(daemon_socket(head.place.home)) as client:
            for event in client.generate(REQUEST.model_copy(update={"prompt": prompt})):
                text.append(event.text)
                tokens.extend(event.token_ids)
                if len(tokens) >= KILL_AFTER and not waited:
                    waited = True
                    under_way.wait(60)
        return "".join(text), tokens

    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(ask, prompts))


def epoch(ring: Cluster) -> int:
    plan = ring.head.status().plan
    assert plan is not None
    return plan.epoch


@pytest.fixture
def whole_ring(ring: Cluster) -> Iterator[Cluster]:
    ring.wait_ring_of(3)
    yield ring


def test_a_killed_worker(whole_ring: Cluster, calm: tuple[str, list[int]]) -> None:
    before = epoch(whole_ring)
    victim = whole_ring.daemons[1]
    text, tokens, usage = answer(whole_ring.head, victim.process.kill)
    assert (text, tokens) == calm
    assert usage.completion_tokens == TOKENS
    after = whole_ring.wait_ring_of(2, newer_than=before)
    assert after.plan is not None
    # It comes back under its old identity, needs no token, and is used again.
    device = victim.place
    assert isinstance(device, Device)
    whole_ring.daemons[1] = device.start_daemon(*FLAGS)
    whole_ring.wait_ring_of(3, newer_than=after.plan.epoch)
    assert answer(whole_ring.head)[:2] == calm


def test_a_pulled_cable(whole_ring: Cluster, calm: tuple[str, list[int]]) -> None:
    before = epoch(whole_ring)
    device = whole_ring.daemons[2].place
    assert isinstance(device, Device)
    text, tokens, _ = answer(whole_ring.head, device.unplug)
    assert (text, tokens) == calm
    after = whole_ring.wait_ring_of(2, newer_than=before)
    assert after.plan is not None
    device.plug()
    whole_ring.wait_ring_of(3, newer_than=after.plan.epoch)
    assert answer(whole_ring.head)[:2] == calm
    assert whole_ring.daemons[2].process.running


def test_a_worker_that_leaves_in_order(whole_ring: Cluster, calm: tuple[str, list[int]]) -> None:
    """Ctrl-C on a worker in mid-answer."""
    before = epoch(whole_ring)
    leaver = whole_ring.daemons[2]
    text, tokens, _ = answer(whole_ring.head, leaver.process.interrupt)
    assert (text, tokens) == calm
    assert leaver.process.wait(30) == 0
    after = whole_ring.wait_ring_of(2, newer_than=before)
    assert after.plan is not None
    device = leaver.place
    assert isinstance(device, Device)
    whole_ring.daemons[2] = device.start_daemon(*FLAGS)
    whole_ring.wait_ring_of(3, newer_than=after.plan.epoch)


def test_a_frozen_worker(whole_ring: Cluster, calm: tuple[str, list[int]]) -> None:
    """It hangs with all its connections open, as a laptop does whose lid is closed, and wakes up later."""
    before = epoch(whole_ring)
    sleeper = whole_ring.daemons[1].process
    text, tokens, _ = answer(whole_ring.head, lambda: os.kill(sleeper.pid, signal.SIGSTOP))
    assert (text, tokens) == calm
    after = whole_ring.wait_ring_of(2, newer_than=before)
    assert after.plan is not None
    os.kill(sleeper.pid, signal.SIGCONT)
    whole_ring.wait_ring_of(3, newer_than=after.plan.epoch)
    assert answer(whole_ring.head)[:2] == calm


def test_a_killed_worker_under_several_answers(whole_ring: Cluster) -> None:
    prompts = ["The history of bread begins", "Bees live", "In the year 1900", "A ship is"]
    calm = several(whole_ring.head, prompts, lambda: None)
    assert all(len(tokens) == TOKENS for _, tokens in calm)
    assert len({text for text, _ in calm}) == len(prompts)
    assert several(whole_ring.head, prompts, whole_ring.daemons[1].process.kill) == calm
    whole_ring.wait_ring_of(2)
