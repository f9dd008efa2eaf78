"""mDNS as it really is: on this machine's own network, on a loopback alone, and between namespaces."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue

import pytest
from zeroconf import ServiceInfo, ServiceStateChange, Zeroconf

from edged.cluster import discovery
from edged.cluster.discovery import (
    SERVICE,
    Announcement,
    DiscoveredPeer,
    Discovery,
    _peer,
    _service,
    find_founder,
)
from edged.cluster.interfaces import Interfaces, interfaces
from edged.errors import PeerLostError
from tests.lab import Home
from tests.lab.namespace import Namespace

CLUSTER = "c" * 16
WAIT_S = 20.0

NAS = Announcement("a" * 16, CLUSTER, "founder", 4242)
PI = Announcement("b" * 16, CLUSTER, "member", 4343)


class Heard:
    def __init__(self) -> None:
        self.found: SimpleQueue[DiscoveredPeer] = SimpleQueue()

    def wait_for(self, device: str) -> DiscoveredPeer:
        while True:
            peer = self.found.get(timeout=WAIT_S)
            if peer.device == device:
                return peer


class Parting(Discovery):
    """Notes who said goodbye."""

    def __init__(self, announcement: Announcement | None, found: Callable[[DiscoveredPeer], None]) -> None:
        self.gone: SimpleQueue[str] = SimpleQueue()
        super().__init__(announcement, found)

    def _heard(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        super()._heard(zeroconf, service_type, name, state_change)
        if state_change is ServiceStateChange.Removed:
            self.gone.put(name.removesuffix(f".{SERVICE}"))


def test_two_daemons_of_one_machine_meet_and_part() -> None:
    nas, pi = Heard(), Heard()
    with Parting(NAS, nas.found.put) as listening:
        with Discovery(PI, pi.found.put):
            seen = pi.wait_for(NAS.device)
            assert (seen.cluster, seen.role, seen.port, seen.protocol) == (CLUSTER, "founder", 4242, 1)
            assert set(seen.hosts) == set(interfaces().announced)
            assert nas.wait_for(PI.device).role == "member"
        while listening.gone.get(timeout=WAIT_S) != PI.device:
            pass


def test_the_founder_is_found_by_fingerprint() -> None:
    with Discovery(NAS, lambda _: None), Discovery(PI, lambda _: None):
        assert find_founder(CLUSTER, WAIT_S).device == NAS.device
        with pytest.raises(PeerLostError, match=r"d{16} is not heard in this network.*--peer"):
            find_founder("d" * 16, 0.2)


def test_a_new_port_is_heard() -> None:
    heard = Heard()
    with Discovery(PI, heard.found.put):
        with Discovery(NAS, lambda _: None):
            assert heard.wait_for(NAS.device).port == 4242
        with Discovery(Announcement(NAS.device, CLUSTER, "founder", 5555), lambda _: None):
            while heard.wait_for(NAS.device).port != 5555:
                pass


def test_a_listener_in_trouble_does_not_stop_the_ears() -> None:
    heard: SimpleQueue[str] = SimpleQueue()

    def found(peer: DiscoveredPeer) -> None:
        heard.put(peer.device)
        raise RuntimeError("a listener in trouble")

    with Discovery(None, found), Discovery(NAS, lambda _: None), Discovery(PI, lambda _: None):
        assert {heard.get(timeout=WAIT_S), heard.get(timeout=WAIT_S)} >= {NAS.device, PI.device}


def test_only_presence_is_announced() -> None:
    service = _service(NAS, interfaces())
    assert set(service.decoded_properties) == {"cluster", "device", "protocol", "role"}


@pytest.mark.parametrize(
    ("device", "change"),
    [
        ("a" * 16, {"cluster": None}),
        ("a" * 16, {"cluster": "../../etc/passwd"}),
        ("a" * 16, {"protocol": "²"}),
        ("a" * 16, {"protocol": "99999999999999999999"}),
        ("a" * 16, {"role": "king"}),
        ("a" * 16, {"device": "b" * 16}),
        ("printer", {"device": "printer"}),
    ],
)
def test_what_is_not_ours_is_ignored(device: str, change: dict[str, str | None]) -> None:
    good = {"cluster": CLUSTER, "device": device, "protocol": "1", "role": "member"}

    def record(properties: dict[str, str | None]) -> ServiceInfo:
        return ServiceInfo(
            SERVICE, f"{device}.{SERVICE}", port=1, addresses=[b"\x0a\0\0\1"], properties=properties
        )

    assert _peer("a" * 16, record({**good, "device": "a" * 16}), None) is not None
    assert _peer(device, record({**good, **change}), None) is None


def test_addresses_of_a_common_network_are_tried_first() -> None:
    here = interfaces()
    ours = Interfaces(here.multicast, here.announced, (ipaddress.ip_network("10.1.0.0/16"),))
    assert ours.nearest_first(["172.17.0.1", "fd00::1", "10.1.2.3"]) == ("10.1.2.3", "172.17.0.1", "fd00::1")


# ---- networks of our own: these need root ---------------------------------------------------------------

ANNOUNCE = f"""
import signal, threading
from edged.cluster.discovery import Announcement, Discovery
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
with Discovery(Announcement({NAS.device!r}, {CLUSTER!r}, "founder", 4242), lambda peer: None):
    print("announcing", flush=True)
    stop.wait()
print("closed", flush=True)
"""

LISTEN = f"""
from edged.cluster.discovery import find_founder
peer = find_founder({CLUSTER!r}, 20)
print(peer.device, *peer.hosts)
"""

PART = """
from tests.cluster.test_discovery import Parting
with Parting(None, lambda peer: print("found", *peer.hosts, flush=True)) as listening:
    listening.gone.get(timeout=60)
    print("lost", flush=True)
"""


def python(script: str) -> list[str]:
    return [sys.executable, "-c", script]


@pytest.mark.root
def test_devices_of_a_home_without_any_route_meet_and_part(home: Home) -> None:
    nas, pi = home.device("nas"), home.device("pi")
    for device in (nas, pi):
        device.namespace.ip("route", "del", "default")
        device.namespace.ip("route", "del", "224.0.0.0/4")
    announcing = nas.popen(python(ANNOUNCE))
    announcing.wait_for_line("announcing")
    assert pi.run(python(LISTEN)).stdout.split() == [NAS.device, nas.address]
    listening = pi.popen(python(PART))
    listening.wait_for_line(f"found {nas.address}")
    announcing.terminate()
    announcing.wait_for_line("closed")
    listening.wait_for_line("lost")  # by the goodbye: the record itself would last for minutes


@pytest.mark.root
def test_a_new_address_is_announced(home: Home) -> None:
    nas, pi = home.device("nas"), home.device("pi")
    nas.popen(python(ANNOUNCE)).wait_for_line("announcing")
    listening = pi.popen(python(PART))
    listening.wait_for_line(f"found {nas.address}")
    moved = nas.address.rsplit(".", 1)[0] + ".200"
    nas.namespace.ip("addr", "del", f"{nas.address}/24", "dev", "eth0")
    nas.namespace.ip("addr", "add", f"{moved}/24", "dev", "eth0")
    listening.wait_for_line(f"found {moved}")


@pytest.mark.root
def test_a_machine_without_network_uses_its_loopback() -> None:
    alone = Namespace(f"edged-alone-{os.getpid()}")
    try:
        announcing = subprocess.Popen([*alone.prefix, *python(ANNOUNCE)], stdout=subprocess.PIPE, text=True)
        assert announcing.stdout is not None
        assert announcing.stdout.readline() == "announcing\n"
        found = subprocess.run(
            [*alone.prefix, *python(LISTEN)], capture_output=True, text=True, check=True, timeout=60
        )
        assert found.stdout.split() == [NAS.device, "127.0.0.1"]
        announcing.terminate()
        assert announcing.wait(timeout=30) == 0
        announcing.stdout.close()
    finally:
        alone.close()


@pytest.mark.root
def test_without_any_interface_it_is_said_and_nothing_breaks() -> None:
    nothing = Namespace(f"edged-nothing-{os.getpid()}")
    try:
        nothing.ip("link", "set", "dev", "lo", "down")
        script = "import logging; logging.basicConfig()" + LISTEN.replace("20", "0.5")
        outcome = subprocess.run(
            [*nothing.prefix, *python(script)], capture_output=True, text=True, check=False, timeout=60
        )
        assert "devices cannot find each other by mDNS here" in outcome.stderr
        assert "PeerLostError" in outcome.stderr
    finally:
        nothing.close()


def test_interfaces_that_cannot_be_read_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a flood of connections holds every file descriptor: discovery goes on afterwards."""
    again = threading.Event()
    tries: list[int] = []

    def read() -> Interfaces:
        tries.append(len(tries))
        if len(tries) == 1:
            raise OSError(24, "Too many open files")
        again.set()
        return interfaces()

    monkeypatch.setattr(discovery, "LOOK_AGAIN_S", 0.01)
    monkeypatch.setattr(discovery, "interfaces", read)
    with Discovery(None, lambda _: None):
        assert again.wait(10)


def test_closing_at_once_is_clean() -> None:
    threads = threading.active_count()
    Discovery(NAS, lambda _: None).close()
    assert threading.active_count() == threads
