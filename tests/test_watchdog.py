"""The bound on what does not get on."""

from __future__ import annotations

import threading

from edged.watchdog import Watchdog

WAIT_S = 20.0


def test_it_bites_what_is_not_fed() -> None:
    bitten = threading.Event()
    with Watchdog("dog", 0.05, bitten.set) as dog:
        assert bitten.wait(WAIT_S)
        assert dog.has_bitten


def test_what_is_idle_needs_no_food() -> None:
    bitten, looked = threading.Event(), threading.Semaphore(0)

    def idle() -> bool:
        looked.release()
        return not busy.is_set()

    busy = threading.Event()
    with Watchdog("dog", 0.05, bitten.set, idle) as dog:
        for _ in range(30):  # longer than it waits for food
            assert looked.acquire(timeout=WAIT_S)
        assert not dog.has_bitten
        busy.set()
        assert bitten.wait(WAIT_S)


def test_it_does_not_bite_after_its_end_and_may_end_by_its_bite() -> None:
    dogs: list[Watchdog] = []
    closed = threading.Event()

    def bite() -> None:
        made.wait(WAIT_S)
        dogs[0].close()
        closed.set()

    made = threading.Event()
    dogs.append(Watchdog("dog", 0.01, bite))
    made.set()
    assert closed.wait(WAIT_S)
    dogs[0].close()
    tame = Watchdog("tame", 1000.0, bite)
    tame.close()
    assert not tame.has_bitten
