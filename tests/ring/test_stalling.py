"""A ring in which nothing comes round."""

from __future__ import annotations

import threading
from queue import Queue

from edged.errors import RingBrokenError, StalledError
from edged.planning.plan import Expectation
from edged.ring.ring import STALL_S, Ring, stall_limit
from edged.ring.stage import Stage
from tests.ring.fakes import NotedWindow, batch_of, plan_of, tokens_of, windows_of

WAIT = 20


def test_a_device_that_computes_without_end_is_noticed(wires, monkeypatch):
    monkeypatch.setattr("edged.ring.ring.STALL_S", 0.2)
    begun, cancelled = threading.Event(), threading.Event()

    class Endless(NotedWindow):
        def run(self, batch, inputs):
            begun.set()
            assert cancelled.wait(WAIT)
            return super().run(batch, inputs)

        def cancel(self) -> None:
            cancelled.set()

    plan = plan_of(("a", 2), ("b", 3), ("a", 1))
    own, theirs = windows_of(plan), windows_of(plan, Endless)
    results, broken = Queue(), Queue()
    stage = Stage(plan, "b", {1: theirs[1]}, wires.transport("b"), lambda _: None)
    ring = Ring(plan, {0: own[0], 2: own[2]}, wires.transport("a"), results.put, broken.put)
    stage.connect()
    ring.connect()
    ring.submit(0, (), batch_of((0, 0)), tokens_of(1))
    assert isinstance(broken.get(timeout=WAIT), StalledError)
    assert isinstance(results.get(timeout=WAIT).error, RingBrokenError)
    assert begun.is_set()
    assert stage.is_computing
    ring.close()
    stage.close()
    assert not stage.is_computing


def test_the_limit_follows_what_the_plan_expects():
    plan = plan_of(("a", 2), ("b", 3), ("a", 1), n_ubatch=16)
    assert stall_limit(plan) == STALL_S
    slow = Expectation(tpot_ms=4000, ttft_ms_per_token=1000, bytes_read_per_token=0, memory={})
    assert stall_limit(plan.model_copy(update={"expected": slow})) == 200.0
