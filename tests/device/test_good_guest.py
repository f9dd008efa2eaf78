"""When layers make room for other programs, and when they come back."""

from __future__ import annotations

import threading

from edged.device.good_guest import AMPLE_LOOKS, SHORT_LOOKS, GoodGuest, MemoryJudge

LOW = 100


def verdicts(*available: int) -> list[int]:
    judge = MemoryJudge(LOW)
    return [judge.look(one, own=0) for one in available]


def test_enough_memory_changes_nothing() -> None:
    assert verdicts(*[2 * LOW] * 3 * AMPLE_LOOKS) == [0] * 3 * AMPLE_LOOKS


def test_a_short_moment_changes_nothing() -> None:
    moment = [300, *[80] * (SHORT_LOOKS - 1), 300]
    assert verdicts(*moment * 5) == [0] * len(moment) * 5


def test_memory_that_stays_short_is_given_up_once() -> None:
    assert verdicts(300, *[80] * SHORT_LOOKS, 80) == [0] * SHORT_LOOKS + [2 * LOW - 80, 0]


def test_nobody_waits_when_next_to_nothing_is_left() -> None:
    assert verdicts(300, LOW // 2 - 1) == [0, 2 * LOW - (LOW // 2 - 1)]


def test_memory_that_falls_step_by_step_is_not_waited_for() -> None:
    assert verdicts(500, 450, 400, 350, 300, 250) == [0] * 6  # there is still enough
    looks = verdicts(220, 220, 205, 205, 190, 190, 175)
    assert looks[:4] == [0] * 4 and looks[4] == 2 * LOW - (190 - 30 * 20 // 4)
    assert verdicts(300, 150, 150, 150, 150, 150, 150, 150, 150, 150, 150) == [0] * 11  # one step


def test_what_this_process_takes_itself_is_no_fall() -> None:
    judge = MemoryJudge(LOW)
    loading = [(500 - 40 * step, 40 * step) for step in range(9)]
    assert [judge.look(available, own) for available, own in loading] == [0] * 9
    others = [judge.look(180 - 20 * step, 320) for step in range(1, 4)]
    assert others[:1] == [0] and max(others) > 0


def test_what_is_taken_back_leaves_a_margin_and_takes_its_time() -> None:
    looks = verdicts(*[1000] * AMPLE_LOOKS, 1000)
    assert looks == [0] * (AMPLE_LOOKS - 1) + [-(1000 - 3 * LOW), 0]
    assert verdicts(250, *[1000] * (AMPLE_LOOKS - 1)) == [0] * AMPLE_LOOKS


class Layers:
    def __init__(self) -> None:
        self.asked = threading.Event()
        self.wanted = 0

    def give_up(self, wanted: int) -> int:
        self.wanted = wanted
        self.asked.set()
        return wanted

    def take_back(self, room: int) -> int:
        raise AssertionError(f"{room} bytes were to be taken while memory is short")


def test_the_guest_looks_and_tells() -> None:
    layers = Layers()
    said: list[str] = []
    told = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        told.set()

    guest = GoodGuest(layers, 1000 * 2**20, lambda: 0, lambda: 0, say)
    try:
        assert layers.asked.wait(30)
        assert told.wait(30)
    finally:
        guest.close()
        guest.close()
    assert layers.wanted == 2 * int(1000 * 2**20 * 0.05)
    assert said[0] == "memory is short: 100 MiB of layers are read from disk for every token now"
