"""Who is there: the table under a clock of our own, and the thread that watches a real one."""

from __future__ import annotations

import threading
from queue import SimpleQueue

import pytest
from pydantic import ValidationError

from edged.cluster.membership import SILENT_AFTER_S, MemberEvent, Membership, MemberTable
from edged.cluster.messages import BrokenRing, ClusterView, HeartbeatReport
from tests.cluster.clock import Clock
from tests.cluster.reports import RUN, report

DEVICE = "a" * 16
OTHER = "b" * 16
HOST = "10.0.0.7"
RESTARTED = "f" * 16


@pytest.fixture
def table(clock: Clock) -> MemberTable:
    return MemberTable(clock)


def kinds(events: tuple[MemberEvent, ...]) -> list[str]:
    return [event.kind for event in events]


def test_a_device_joins_once(table: MemberTable, clock: Clock) -> None:
    assert kinds(table.heartbeat(DEVICE, HOST, report())) == ["joined"]
    clock.now += 1
    assert table.heartbeat(DEVICE, HOST, report()) == ()
    (member,) = table.members()
    assert (member.state, member.address, member.last_seen) == ("alive", "10.0.0.7:4242", clock.now)


def test_who_it_is_says_the_certificate(table: MemberTable) -> None:
    (event,) = table.heartbeat(DEVICE, HOST, report())
    assert event.member.device == event.member.report.profile.device == DEVICE


def test_silence_is_failure_and_the_next_beat_a_return(table: MemberTable, clock: Clock) -> None:
    table.heartbeat(DEVICE, HOST, report())
    clock.now += SILENT_AFTER_S - 0.01
    assert table.sweep() == ()
    clock.now += 0.01
    assert kinds(table.sweep()) == ["failed"]
    assert table.sweep() == ()
    assert table.members()[0].state == "silent"
    assert kinds(table.heartbeat(DEVICE, HOST, report())) == ["joined"]
    assert table.members()[0].state == "alive"


def test_one_that_beats_does_not_hide_one_that_does_not(table: MemberTable, clock: Clock) -> None:
    table.heartbeat(DEVICE, HOST, report())
    table.heartbeat(OTHER, HOST, report())
    clock.now += SILENT_AFTER_S
    table.heartbeat(OTHER, HOST, report())
    (event,) = table.sweep()
    assert (event.kind, event.member.device) == ("failed", DEVICE)


def test_a_goodbye_is_no_failure(table: MemberTable, clock: Clock) -> None:
    table.heartbeat(DEVICE, HOST, report())
    assert kinds(table.leave(DEVICE, RUN)) == ["left"]
    assert table.leave(DEVICE, RUN) == ()
    clock.now += 10 * SILENT_AFTER_S
    assert table.sweep() == ()
    assert table.members()[0].state == "left"


def test_a_beat_that_the_goodbye_overtook_does_not_bring_it_back(table: MemberTable) -> None:
    table.heartbeat(DEVICE, HOST, report())
    table.leave(DEVICE, RUN)
    assert table.heartbeat(DEVICE, HOST, report()) == ()
    assert kinds(table.heartbeat(DEVICE, HOST, report(RESTARTED))) == ["joined"]


def test_a_late_goodbye_of_an_earlier_run_is_ignored(table: MemberTable) -> None:
    table.heartbeat(DEVICE, HOST, report())
    table.heartbeat(DEVICE, HOST, report(RESTARTED))
    assert table.leave(DEVICE, RUN) == ()
    assert table.members()[0].state == "alive"
    assert table.leave(OTHER, RUN) == ()


def test_a_quick_restart_shows(table: MemberTable) -> None:
    table.heartbeat(DEVICE, HOST, report())
    failed, joined = table.heartbeat(DEVICE, HOST, report(RESTARTED))
    assert (failed.kind, failed.member.report.run) == ("failed", RUN)
    assert (joined.kind, joined.member.report.run) == ("joined", RESTARTED)


@pytest.mark.parametrize(
    "change",
    [
        {"port": 4343},
        {"name": "attic"},
        {"models": ("m",)},
        {"epoch": 3},
        {"broken": BrokenRing(epoch=3, reason="gone")},
    ],
)
def test_what_matters_to_a_plan_is_told(table: MemberTable, change: dict[str, object]) -> None:
    table.heartbeat(DEVICE, HOST, report())
    (event,) = table.heartbeat(DEVICE, HOST, report(**change))
    assert event.kind == "changed"
    assert event.member.report.profile.device == DEVICE


def test_a_new_address_is_told(table: MemberTable) -> None:
    table.heartbeat(DEVICE, HOST, report())
    (event,) = table.heartbeat(DEVICE, "fd00::7", report())
    assert (event.kind, event.member.address) == ("changed", "[fd00::7]:4242")


def test_free_memory_changes_without_noise_but_is_known(table: MemberTable) -> None:
    table.heartbeat(DEVICE, HOST, report(memory=2**30))
    assert table.heartbeat(DEVICE, HOST, report(memory=2**29)) == ()
    assert table.members()[0].report.profile.memory_budget == 2**29
    assert table.statuses()[0].memory_budget == 2**29


def test_when_to_look_again(table: MemberTable, clock: Clock) -> None:
    assert table.until_next_sweep() is None
    table.heartbeat(DEVICE, HOST, report())
    clock.now += 2
    table.heartbeat(OTHER, HOST, report())
    assert table.until_next_sweep() == SILENT_AFTER_S - 2
    clock.now += 100
    assert table.until_next_sweep() == 0
    table.sweep()
    assert table.until_next_sweep() is None


def test_statuses_are_for_people(table: MemberTable, clock: Clock) -> None:
    table.heartbeat(DEVICE, HOST, report())
    clock.now += 3
    (status,) = table.statuses()
    assert (status.device, status.name, status.state, status.last_seen_s) == (DEVICE, "pi", "alive", 3.0)


@pytest.mark.parametrize(
    "bad", [{"name": "a\x1b[2J"}, {"name": ""}, {"run": "x"}, {"port": 0}, {"version": "v" * 99}]
)
def test_a_report_that_no_daemon_sends_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        report(**bad)


def test_documents_survive_the_wire() -> None:
    sent = report(models=("m",), broken=BrokenRing(epoch=1, reason="why"))
    assert HeartbeatReport.unpack(sent.pack()) == sent
    view = ClusterView(coordinator=DEVICE)
    assert ClusterView.unpack(view.pack()) == view


# ---- the thread -----------------------------------------------------------------------------------------


def test_events_are_told_in_order_and_a_bad_listener_survives() -> None:
    told: SimpleQueue[tuple[str, str]] = SimpleQueue()

    def listener(event: MemberEvent) -> None:
        told.put((event.kind, event.member.device))
        raise RuntimeError("a listener in trouble")

    with Membership(listener) as membership:
        membership.heartbeat(DEVICE, HOST, report())
        membership.heartbeat(OTHER, HOST, report())
        membership.leave(DEVICE, RUN)
        expected = [("joined", DEVICE), ("joined", OTHER), ("left", DEVICE)]
        assert [told.get(timeout=10) for _ in expected] == expected
        assert [member.device for member in membership.alive()] == [OTHER]


def test_a_slow_listener_delays_no_heartbeat() -> None:
    release, inside = threading.Event(), threading.Event()

    def listener(_: MemberEvent) -> None:
        inside.set()
        release.wait(30)

    with Membership(listener) as membership:
        membership.heartbeat(DEVICE, HOST, report())
        assert inside.wait(10)
        membership.heartbeat(OTHER, HOST, report())
        assert len(membership.members()) == 2
        release.set()


def test_silence_is_noticed_without_anybody_calling() -> None:
    clock = Clock()
    failed = threading.Event()

    def listener(event: MemberEvent) -> None:
        if event.kind == "joined":
            clock.now += SILENT_AFTER_S
        if event.kind == "failed":
            failed.set()

    with Membership(listener, MemberTable(clock)) as membership:
        membership.heartbeat(DEVICE, HOST, report())
        assert failed.wait(10)
    membership.close()
