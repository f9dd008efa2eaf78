"""Measuring links over real mutual TLS, and surveying them: who is measured, when, and what is remembered."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from edged.cluster import link_probe, link_service, link_survey
from edged.cluster.assignment import Endpoint
from edged.cluster.identity import Identity
from edged.cluster.link_probe import measure_link
from edged.cluster.link_service import LinkService, _receipt
from edged.cluster.link_survey import LinkSurvey, Place
from edged.cluster.member_service import MemberService
from edged.cluster.messages import LinkAnswer, LinkQuery
from edged.errors import EdgedError, InvalidRequestError, OverloadedError, PeerLostError, UntrustedPeerError
from edged.rpc import edged_pb2, edged_pb2_grpc
from edged.rpc.channel import connect
from edged.rpc.server import Server, serve
from edged.rpc.status import guard, unwrap

HOST = "127.0.0.1"
WAIT_S = 20.0


@pytest.fixture
def served(founder: Identity) -> Iterator[Server]:
    with serve(founder, [LinkService().add_to], 0) as server:
        yield server


@pytest.fixture
def channel(founder: Identity, member: Identity, served: Server) -> Iterator[grpc.Channel]:
    """From the member to the founder."""
    opened = connect(member, founder.device, HOST, served.port)
    yield opened
    opened.close()


# ---- one measurement


def test_a_link_has_a_latency_and_a_bandwidth(channel: grpc.Channel) -> None:
    answer = measure_link(channel, "nas")
    assert 0 < answer.latency < 1
    assert answer.bandwidth > 1e5
    assert measure_link(channel, "nas").bandwidth > 1e5  # the far end is free again


def test_a_measurement_sends_no_more_than_it_may(
    channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    pieces = link_probe._pieces

    def counted() -> Iterator[edged_pb2.Probe]:
        for piece in pieces():
            sent.append(len(piece.data))
            yield piece

    monkeypatch.setattr(link_probe, "_pieces", counted)
    measure_link(channel, "nas")
    assert 0 < sum(sent) <= link_probe.MOST_BYTES <= 8 * 2**20
    sent.clear()
    monkeypatch.setattr(link_probe, "SEND_S", 0.0)
    measure_link(channel, "nas")
    assert len(sent) == link_probe.LEAST_PIECES


def test_two_measurements_at_once_are_refused(channel: grpc.Channel) -> None:
    stub = edged_pb2_grpc.LinkStub(channel)
    outgoing: SimpleQueue[edged_pb2.Probe | None] = SimpleQueue()
    first = stub.Echo(iter(outgoing.get, None))
    outgoing.put(edged_pb2.Probe(data=b"x"))
    assert next(first).data == b"x"
    with pytest.raises(OverloadedError, match="measurements of links"):
        measure_link(channel, "nas")
    outgoing.put(None)
    assert list(first) == []
    measure_link(channel, "nas")


@pytest.mark.parametrize(
    "probes",
    [
        [bytes(link_service.MOST_ECHO_BYTES + 1)],
        [b"x"] * (link_service.MOST_ECHOES + 1),
    ],
    ids=["large", "many"],
)
def test_more_than_a_measurement_takes_is_refused(channel: grpc.Channel, probes: list[bytes]) -> None:
    call = edged_pb2_grpc.LinkStub(channel).Echo(edged_pb2.Probe(data=data) for data in probes)
    with pytest.raises(grpc.RpcError) as refused:
        list(call)
    assert isinstance(unwrap(refused.value, "nas"), InvalidRequestError)


def test_a_sink_does_not_take_everything(channel: grpc.Channel) -> None:
    endless = iter(lambda: edged_pb2.Probe(data=bytes(2**20)), None)
    with pytest.raises(grpc.RpcError) as refused:
        edged_pb2_grpc.LinkStub(channel).Sink(endless)
    assert isinstance(unwrap(refused.value, "nas"), InvalidRequestError)


def test_the_first_quarter_does_not_count() -> None:
    slow_start = [(0.0, 10), (5.0, 20), (6.0, 40), (7.0, 80)]  # 20 bytes by 5.0, then 60 in 2 s
    receipt = _receipt(slow_start)
    assert (receipt.bytes, receipt.seconds) == (60, 2.0)
    assert _receipt([(0.0, 10)]).bytes == 0
    assert _receipt([]).bytes == 0
    assert _receipt([(1.0, 1), (2.0, 3)]).bytes == 2


def test_a_device_that_is_gone_is_said_to_be(founder: Identity, member: Identity, served: Server) -> None:
    served.close()
    gone = connect(member, founder.device, HOST, served.port)
    with pytest.raises(PeerLostError, match="nas"):
        measure_link(gone, "nas")
    gone.close()


# ---- on request of the coordinator


def test_only_the_coordinator_may_ask_a_member_to_measure(
    founder: Identity, member: Identity, make_member: Callable[[str], Identity]
) -> None:
    other = make_member("tv")
    dialled: list[Endpoint] = []

    def dial(endpoint: Endpoint) -> grpc.Channel:
        dialled.append(endpoint)
        return connect(member, endpoint.device, endpoint.host, endpoint.port)

    service = MemberService(SimpleNamespace(epoch=0), founder.device, dial)  # type: ignore[arg-type]
    with ExitStack() as stack:
        add = edged_pb2_grpc.add_MemberServicer_to_server
        laptop = stack.enter_context(serve(member, [lambda server: add(service, server)], 0))
        nas = stack.enter_context(serve(founder, [LinkService().add_to], 0))
        target = Endpoint(device=founder.device, name="nas", host="", port=nas.port)
        query = edged_pb2.Document(body=LinkQuery(target=target).pack())

        def ask(who: Identity) -> LinkAnswer:
            channel = connect(who, member.device, HOST, laptop.port)
            stack.callback(channel.close)
            try:
                answer = edged_pb2_grpc.MemberStub(channel).MeasureLink(query, timeout=WAIT_S)
            except grpc.RpcError as error:
                raise unwrap(error, "laptop") from None
            return LinkAnswer.unpack(answer.body)

        assert ask(founder).bandwidth > 0
        assert [endpoint.host for endpoint in dialled] == [HOST]  # where the coordinator's call came from
        with pytest.raises(UntrustedPeerError, match="only the coordinator"):
            ask(other)


# ---- the survey


class Answering(edged_pb2_grpc.MemberServicer):
    """A member that says how good its links are, and counts how often at once it is asked."""

    def __init__(self) -> None:
        self.asked: SimpleQueue[str] = SimpleQueue()
        self.problem: EdgedError | None = None
        self.holds = False  # answers only when the call is broken off

    @guard
    def MeasureLink(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.asked.put(LinkQuery.unpack(request.body).target.name)
        if self.problem is not None:
            raise self.problem
        if self.holds:
            ended = threading.Event()
            if context.add_callback(ended.set):
                ended.wait()
        return edged_pb2.Document(body=LinkAnswer(latency=0.002, bandwidth=1e7).pack())

    def add_to(self, server: grpc.Server) -> None:
        edged_pb2_grpc.add_MemberServicer_to_server(self, server)


class Cluster:
    """A founder that surveys, and members on real servers; `quiet` and `there` are for the test to change."""

    def __init__(
        self, founder: Identity, make_member: Callable[[str], Identity], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(link_survey, "SETTLE_S", 0.0)
        monkeypatch.setattr(link_survey, "BUSY_S", 0.01)
        self._stack = ExitStack()
        self._founder = founder
        self._make = make_member
        self.quiet = True
        self.looks: SimpleQueue[bool] = SimpleQueue()
        self.there: list[Place] = []
        self.members: dict[str, Answering] = {}
        self.at_once = 0
        self._under_way = 0
        self.outgoing: SimpleQueue[str] = SimpleQueue()  # measured from the founder itself
        monkeypatch.setattr(link_survey, "measure_link", self._measure)

    def start(self) -> LinkSurvey:
        survey = LinkSurvey(
            here=Place(self._founder.device, "nas", "", 1, ""),
            others=lambda: list(self.there),
            dial=lambda end: connect(self._founder, end.device, end.host, end.port),
            is_quiet=self._is_quiet,
        )
        return self._stack.enter_context(survey)

    def add(self, name: str, run: str = "1") -> Place:
        identity = self._make(name)
        service = self.members[name] = Answering()
        server = self._stack.enter_context(serve(identity, [service.add_to], 0))
        place = Place(identity.device, name, HOST, server.port, run)
        self.there.append(place)
        return place

    def _is_quiet(self) -> bool:
        self.looks.put(self.quiet)
        return self.quiet

    def _measure(self, channel: grpc.Channel, name: str) -> LinkAnswer:
        self.outgoing.put(name)
        return LinkAnswer(latency=0.001, bandwidth=2e7)

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def cluster(
    founder: Identity, make_member: Callable[[str], Identity], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cluster]:
    made = Cluster(founder, make_member, monkeypatch)
    yield made
    made.close()


def wait_known(survey: LinkSurvey, count: int) -> set[tuple[str, str]]:
    pause = threading.Event()
    for _ in range(int(WAIT_S / 0.01)):
        if len(survey.known()) == count:
            break
        pause.wait(0.01)
    known = {(link.source, link.target) for link in survey.known()}
    assert len(known) == count
    return known


def test_every_pair_is_measured_in_both_directions(cluster: Cluster) -> None:
    cluster.add("laptop")
    cluster.add("tv")
    survey = cluster.start()
    devices = {place.device for place in cluster.there} | {survey._here.device}
    known = wait_known(survey, 6)
    assert known == {(a, b) for a in devices for b in devices if a != b}
    assert {cluster.outgoing.get(timeout=WAIT_S) for _ in range(2)} == {"laptop", "tv"}
    assert {cluster.members["tv"].asked.get(timeout=WAIT_S) for _ in range(2)} == {"laptop", "nas"}
    by_ends = {(link.source, link.target): link for link in survey.known()}
    tv = cluster.there[1].device
    assert by_ends[tv, survey._here.device].latency == 0.002
    assert by_ends[survey._here.device, tv].bandwidth == 2e7
    assert len(survey.known_of(tv)) == 4


def test_who_comes_later_is_measured_too_and_who_leaves_is_forgotten(cluster: Cluster) -> None:
    cluster.add("laptop")
    survey = cluster.start()
    wait_known(survey, 2)
    tv = cluster.add("tv")
    survey.members_changed()
    wait_known(survey, 6)
    cluster.there.remove(tv)
    assert len(survey.known()) == 2


def test_a_daemon_that_was_started_anew_is_measured_again(cluster: Cluster) -> None:
    place = cluster.add("laptop")
    survey = cluster.start()
    wait_known(survey, 2)
    assert cluster.members["laptop"].asked.get(timeout=WAIT_S) == "nas"
    cluster.there[:] = [Place(place.device, place.name, place.host, place.port, "2")]
    assert survey.known() == ()
    survey.members_changed()
    wait_known(survey, 2)
    assert cluster.members["laptop"].asked.get(timeout=WAIT_S) == "nas"


def test_nothing_is_measured_while_somebody_waits_for_an_answer(cluster: Cluster) -> None:
    cluster.quiet = False
    cluster.add("laptop")
    survey = cluster.start()
    for _ in range(5):
        assert cluster.looks.get(timeout=WAIT_S) is False
    assert survey.known() == ()
    assert cluster.outgoing.empty()
    cluster.quiet = True
    wait_known(survey, 2)


def test_a_failed_measurement_is_tried_again_and_keeps_what_was_known(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_survey, "RETRY_S", 0.02)
    cluster.add("laptop")
    laptop = cluster.members["laptop"]
    laptop.problem = OverloadedError("busy")
    survey = cluster.start()
    for _ in range(3):
        laptop.asked.get(timeout=WAIT_S)
    assert len(survey.known()) == 1  # the founder's own
    laptop.problem = None
    wait_known(survey, 2)
    laptop.problem = OverloadedError("busy again")
    while not laptop.asked.empty():
        laptop.asked.get()
    survey.measure_again()
    for _ in range(2):
        laptop.asked.get(timeout=WAIT_S)
    assert len(survey.known()) == 2


def test_closing_breaks_a_measurement_off(cluster: Cluster) -> None:
    cluster.add("laptop")
    laptop = cluster.members["laptop"]
    laptop.holds = True
    survey = cluster.start()
    assert laptop.asked.get(timeout=WAIT_S) == "nas"
    survey.close()  # or the test would never end
    assert {link.source for link in survey.known()} <= {survey._here.device}
