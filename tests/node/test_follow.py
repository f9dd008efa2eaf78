"""A device that is not the head, and the head it passes questions on to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from edged.cluster.address_book import Address
from edged.cluster.messages import ClusterView
from edged.errors import EdgedError, PeerLostError
from edged.node.follow import Follow
from edged.rpc.channel import connect_local
from edged.rpc.messages import Progress
from edged.serving.generation import GenerateRequest, Message
from edged.settings import daemon_socket
from edged.store.catalogue import Catalogue
from tests.cli.door import Door, open_door

ENDLESS = GenerateRequest(messages=(Message(role="user", content="endless"),))


class Member:
    """A Follow whose head is a scripted door, at whatever address is said."""

    def __init__(self, home: Path) -> None:
        self.address = Address("10.0.0.1", 7411)
        self.opened: list[Address] = []
        self._socket = daemon_socket(home)
        self.inside = Follow(
            identity=SimpleNamespace(name="pi", cluster="c"),  # type: ignore[arg-type]
            catalogue=Catalogue(home / "member"),
            worker=SimpleNamespace(stats=None),  # type: ignore[arg-type]
            head_at=lambda: self.address,
            open_head=self._open,
            say=lambda _: None,
        )

    def _open(self, address: Address) -> object:
        self.opened.append(address)
        return connect_local(self._socket)


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    with open_door(tmp_path) as opened:
        yield opened


@pytest.fixture
def member(tmp_path: Path, door: Door) -> Iterator[Member]:
    made = Member(tmp_path)
    made.inside.coordinator_says(ClusterView(coordinator="h"))
    yield made
    made.inside.close()


def test_a_missed_heartbeat_ends_no_answer(member: Member) -> None:
    generation = member.inside.generate(ENDLESS)
    events = iter(generation)
    assert next(events).text == "1 "
    member.inside.coordinator_lost(PeerLostError("a slow moment"))
    member.inside.coordinator_says(ClusterView(coordinator="h"))
    member.inside.models()
    assert next(events).text == "2 "
    generation.cancel()


def test_a_head_with_a_new_address_is_asked_there(member: Member) -> None:
    member.inside.models()
    member.address = Address("10.0.0.9", 7411)
    member.inside.models()
    member.inside.models()
    assert [address.host for address in member.opened] == ["10.0.0.1", "10.0.0.9"]


def test_what_is_held_here_is_what_this_device_holds(member: Member) -> None:
    """The scripted head says that it holds a mebibyte."""
    assert [model.held for model in member.inside.models().models if model.name == "crow"] == [0]


def test_a_member_that_stops_asks_nothing_more(member: Member) -> None:
    member.inside.models()
    member.inside.close()
    with pytest.raises(EdgedError, match="stopping"):
        member.inside.generate(ENDLESS)
    assert len(member.opened) == 1


def test_a_head_that_is_silent_is_not_asked(member: Member) -> None:
    member.inside.coordinator_lost(PeerLostError("gone"))
    with pytest.raises(PeerLostError, match="gone"):
        member.inside.generate(ENDLESS)


def test_who_asks_before_the_first_heartbeat_waits_for_it(tmp_path: Path, door: Door) -> None:
    member = Member(tmp_path)
    steps: list[Progress] = []
    asking = threading.Thread(target=lambda: steps.extend(member.inside.load("crow")))
    asking.start()
    asking.join(0.1)
    member.inside.coordinator_says(ClusterView(coordinator="h"))
    asking.join(10)
    member.inside.close()
    assert door.loads == ["crow"]
    assert steps[-1].finished
