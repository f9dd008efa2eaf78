from __future__ import annotations

import pytest

from edged.cluster.shunned import FAILED_S, OFFENDER_S, STRIKES, STRIKES_S, Shunned
from tests.cluster.clock import Clock


@pytest.fixture
def shunned(clock: Clock) -> Shunned:
    return Shunned(clock)


def test_a_failure_is_forgotten_with_time_or_a_report(shunned: Shunned, clock: Clock) -> None:
    shunned.leave_out("a", "no room")
    shunned.leave_out("b", "silent")
    assert shunned.reasons() == {"a": "no room", "b": "silent"}
    shunned.pardon("b")
    assert shunned.reasons() == {"a": "no room"}
    clock.now += FAILED_S
    assert shunned.reasons() == {}


def test_one_offence_may_be_a_fault_several_are_not(shunned: Shunned, clock: Clock) -> None:
    for _ in range(STRIKES - 1):
        shunned.accuse("a", "garbage")
    assert shunned.reasons() == {}
    shunned.accuse("a", "garbage")
    shunned.pardon("a")
    assert shunned.reasons() == {"a": "garbage"}
    clock.now += OFFENDER_S
    assert shunned.reasons() == {}


def test_offences_far_apart_do_not_add_up(shunned: Shunned, clock: Clock) -> None:
    for _ in range(STRIKES + 2):
        shunned.accuse("a", "garbage")
        clock.now += STRIKES_S
    assert shunned.reasons() == {}
