"""Heartbeats over real mutual TLS: goodbye, restarts, new addresses, strangers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue

import pytest

from edged.cluster.address_book import Address, AddressBook
from edged.cluster.heart import Heart
from edged.cluster.heartbeat_service import HeartbeatService
from edged.cluster.identity import Identity, found_cluster
from edged.cluster.membership import MemberEvent, Membership
from edged.cluster.messages import BrokenRing, ClusterView, HeartbeatReport
from edged.errors import EdgedError, PeerLostError, SettingsError, UntrustedPeerError
from edged.rpc.server import Server, serve
from tests.cluster.reports import report

HOST = "127.0.0.1"
NEVER = 3600.0  # beats only when woken
WAIT_S = 20.0


class Listener:
    def __init__(self) -> None:
        self.views: SimpleQueue[ClusterView] = SimpleQueue()
        self.losses: SimpleQueue[EdgedError] = SimpleQueue()

    def coordinator_says(self, view: ClusterView) -> None:
        self.views.put(view)

    def coordinator_lost(self, error: EdgedError) -> None:
        self.losses.put(error)


class Coordinator:
    """A coordinator's network side, which can be turned off and on."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.events: SimpleQueue[MemberEvent] = SimpleQueue()
        self.membership = Membership(self.events.put)
        self.server: Server | None = None
        self.port = 0

    def start(self, port: int = 0) -> int:
        view = ClusterView(coordinator=self.identity.device)
        service = HeartbeatService(self.membership, lambda: view)
        self.server = serve(self.identity, [service.add_to], port or self.port)
        self.port = self.server.port
        return self.port

    def stop(self) -> None:
        if self.server is not None:
            self.server.close(grace_s=0.0)
            self.server = None

    def close(self) -> None:
        self.stop()
        self.membership.close()

    def wait_for(self, kind: str) -> MemberEvent:
        while True:
            event = self.events.get(timeout=WAIT_S)
            if event.kind == kind:
                return event


@pytest.fixture
def coordinator(founder: Identity) -> Iterator[Coordinator]:
    running = Coordinator(founder)
    yield running
    running.close()


@contextmanager
def beating(
    member: Identity,
    listener: Listener,
    given: Address | None = None,
    make: Callable[[], HeartbeatReport] = report,
    interval_s: float = NEVER,
) -> Iterator[Heart]:
    book = AddressBook(member.home / "coordinator", given)
    with Heart(member, book, make, listener, interval_s) as heart:
        yield heart


def test_a_heart_beats_and_says_goodbye(coordinator: Coordinator, member: Identity) -> None:
    listener = Listener()
    with beating(member, listener, Address(HOST, coordinator.start())):
        joined = coordinator.wait_for("joined").member
        assert listener.views.get(timeout=WAIT_S).coordinator == coordinator.identity.device
        assert (joined.device, joined.host) == (member.device, HOST)
    assert coordinator.wait_for("left").member.device == member.device
    assert listener.losses.empty()


def test_bad_news_travels_at_once(coordinator: Coordinator, member: Identity) -> None:
    broken: list[BrokenRing] = []
    with beating(
        member,
        Listener(),
        Address(HOST, coordinator.start()),
        lambda: report(epoch=4, broken=broken[0] if broken else None),
    ) as heart:
        coordinator.wait_for("joined")
        broken.append(BrokenRing(epoch=4, reason="gone"))
        heart.beat_now()  # the interval alone would take an hour
        assert coordinator.wait_for("changed").member.report.broken == broken[0]


def test_it_beats_by_itself(coordinator: Coordinator, member: Identity) -> None:
    listener = Listener()
    with beating(member, listener, Address(HOST, coordinator.start()), interval_s=0.01):
        for _ in range(5):
            listener.views.get(timeout=WAIT_S)


def test_it_survives_a_restart_of_the_coordinator(coordinator: Coordinator, member: Identity) -> None:
    listener = Listener()
    with beating(member, listener, Address(HOST, coordinator.start()), interval_s=0.05):
        coordinator.wait_for("joined")
        coordinator.stop()
        assert isinstance(listener.losses.get(timeout=WAIT_S), PeerLostError)
        coordinator.start()
        while not listener.views.empty():
            listener.views.get()
        listener.views.get(timeout=WAIT_S)


def test_it_follows_the_coordinator_to_another_port(coordinator: Coordinator, member: Identity) -> None:
    listener = Listener()
    with beating(member, listener, Address(HOST, coordinator.start()), interval_s=0.05) as heart:
        listener.views.get(timeout=WAIT_S)
        with socket.create_server((HOST, 0)) as free:
            port = free.getsockname()[1]
        coordinator.stop()
        listener.losses.get(timeout=WAIT_S)
        while not listener.views.empty():
            listener.views.get()
        coordinator.start(port)
        heart.coordinator_seen([HOST], port)
        listener.views.get(timeout=WAIT_S)
    assert AddressBook(member.home / "coordinator").candidates() == (Address(HOST, port),)


def test_it_waits_for_mdns_where_no_address_is_known(coordinator: Coordinator, member: Identity) -> None:
    listener = Listener()
    with beating(member, listener) as heart:
        assert "address is not known" in listener.losses.get(timeout=WAIT_S).message
        heart.coordinator_seen(["127.0.0.1"], coordinator.start())
        listener.views.get(timeout=WAIT_S)


def test_it_remembers_the_address_over_a_restart(coordinator: Coordinator, member: Identity) -> None:
    listener = Listener()
    with beating(member, listener, Address(HOST, coordinator.start())):
        listener.views.get(timeout=WAIT_S)
    with beating(member, listener):
        listener.views.get(timeout=WAIT_S)


def test_it_tries_the_next_address_where_the_first_is_dead(
    coordinator: Coordinator, member: Identity
) -> None:
    with socket.create_server((HOST, 0)) as free:
        dead = free.getsockname()[1]
    listener = Listener()
    with beating(member, listener, Address(HOST, dead)) as heart:
        listener.losses.get(timeout=WAIT_S)
        heart.coordinator_seen([HOST], coordinator.start())
        listener.views.get(timeout=WAIT_S)


def test_another_cluster_at_the_address_is_said_once(member: Identity, tmp_path: Path) -> None:
    stranger = Coordinator(found_cluster(tmp_path / "stranger", "neighbour"))
    listener = Listener()
    with ExitStack() as stack:
        stack.callback(stranger.close)
        with beating(member, listener, Address(HOST, stranger.start())) as heart:
            error = listener.losses.get(timeout=WAIT_S)
            heart.beat_now()
        assert isinstance(error, UntrustedPeerError)
        assert "no certificate of this cluster" in error.message
        assert listener.losses.empty()
        assert stranger.membership.members() == ()


def test_a_listener_or_report_in_trouble_does_not_stop_the_heart(
    coordinator: Coordinator, member: Identity
) -> None:
    views: SimpleQueue[ClusterView] = SimpleQueue()
    calls = 0

    def sometimes() -> HeartbeatReport:
        nonlocal calls
        calls += 1
        if calls == 2:
            heart_may_go_on.set()
            raise RuntimeError("no report today")
        return report()

    class Bad(Listener):
        def coordinator_says(self, view: ClusterView) -> None:
            views.put(view)
            raise RuntimeError("a listener in trouble")

    heart_may_go_on = threading.Event()
    with beating(member, Bad(), Address(HOST, coordinator.start()), sometimes, 0.01) as heart:
        views.get(timeout=WAIT_S)
        assert heart_may_go_on.wait(WAIT_S)
        heart.beat_now()
        views.get(timeout=WAIT_S)


def test_closing_does_not_wait_for_a_coordinator_that_hangs(member: Identity) -> None:
    with socket.create_server((HOST, 0)) as silent:
        listener = Listener()
        with beating(member, listener, Address(HOST, silent.getsockname()[1])) as heart:
            silent.accept()[0].close()
        heart.close()
    assert listener.views.empty()


def test_a_broken_hint_on_disk_is_no_problem(tmp_path: Path) -> None:
    (tmp_path / "coordinator").write_bytes(b"\xff\xfe nonsense")
    assert AddressBook(tmp_path / "coordinator").candidates() == ()


def test_candidates_come_in_the_order_of_trust(tmp_path: Path) -> None:
    book = AddressBook(tmp_path / "coordinator", Address("nas.local", 1))
    book.worked(Address("10.0.0.9", 9))
    assert book.see(["10.0.0.1", "10.0.0.9"], 9)
    assert not book.see(["10.0.0.1", "10.0.0.9"], 9)
    assert book.candidates() == (Address("nas.local", 1), Address("10.0.0.1", 9), Address("10.0.0.9", 9))
    book.see([f"10.9.9.{last}" for last in range(200)], 9)  # somebody who would keep us busy
    assert len(book.candidates()) == 10


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("nas:4242", Address("nas", 4242)),
        ("[fd00::1]:80", Address("fd00::1", 80)),
        (" 10.0.0.1:1\n", Address("10.0.0.1", 1)),
    ],
)
def test_addresses_as_people_write_them(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "text", ["", "nas", ":1", "nas:", "nas:0", "nas:65536", "nas:x", "fd00::1:80", "nas:²"]
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(SettingsError):
        Address.parse(text)
