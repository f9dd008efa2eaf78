"""A cable that takes time: what crosses it comes late, in order, and unharmed."""

from __future__ import annotations

import pytest

from tests.lab import Delay, Device, Home
from tests.lab.scripts import ANNOUNCE, BOUNCE, BROWSE, ECHO, GRPC_ECHO, GRPC_SEND, READ, SERVE, python

pytestmark = pytest.mark.root


def round_trips(home: Home, near: Device, far: Device) -> tuple[float, float]:
    """Seconds: the quickest and the slowest of ten."""
    far.popen(python(ECHO)).wait_for_line("listening")
    least, most = near.run(python(BOUNCE, far.address, "10")).stdout.split()
    return float(least), float(most)


def test_the_round_trip_rises_by_the_delay_of_both_ways(home: Home) -> None:
    plain = round_trips(home, home.device("a"), home.device("b"))
    delayed = round_trips(home, home.device("c"), home.device("d", delay=Delay(20)))
    twice = round_trips(home, home.device("e", delay=Delay(20)), home.device("f", delay=Delay(20)))
    assert plain[0] < 0.040 <= delayed[0] < 0.080 <= twice[0]


def test_jitter_comes_on_top(home: Home) -> None:
    least, most = round_trips(home, home.device("a"), home.device("b", delay=Delay(5, jitter_ms=50)))
    assert least >= 0.010
    assert most - least > 0.010  # ten round trips within a fifth of the range: once in millions


def test_devices_find_each_other_over_a_long_cable(home: Home) -> None:
    a, b = home.device("a", delay=Delay(10)), home.device("b", delay=Delay(10, jitter_ms=5))
    a.popen(python(ANNOUNCE, a.address)).wait_for_line("announced")
    assert b.run(python(BROWSE)).stdout.split() == ["here._edgedlab._tcp.local.", a.address]


def test_grpc_streams_large_messages_over_a_long_cable_of_limited_rate(home: Home) -> None:
    a, b = home.device("a", link="1gbit", delay=Delay(2)), home.device("b", link="100mbit")
    a.popen(python(GRPC_ECHO)).wait_for_line("listening")
    assert b.run(python(GRPC_SEND, a.address, "200000", "8")).stdout.strip() == "8"


def test_a_long_cable_can_be_pulled_too(home: Home) -> None:
    a, b = home.device("a", delay=Delay(1)), home.device("b")
    a.popen(python(SERVE, "100000")).wait_for_line("listening")
    reach = ["timeout", "2", *python(READ, a.address)]
    assert b.run(reach).stdout.strip() == "100000"
    a.unplug()
    assert b.run(reach, check=False).returncode != 0
    a.plug()
    assert b.run(["timeout", "20", *python(READ, a.address)]).stdout.strip() == "100000"
