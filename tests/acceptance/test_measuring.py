"""What devices find out about themselves and about the way to each other, in the emulated home."""

from __future__ import annotations

import itertools
import json

import pytest

from edged.planning.profile import DeviceProfile
from edged.rpc.messages import StatusAnswer
from tests.acceptance.cluster import FLAGS, join
from tests.lab import Home
from tests.lab.place import edged_command

SLOW, FAST = 20e6 / 8, 200e6 / 8  # bytes per second of the shaped links
TLS_AND_HEADERS = 0.6  # of a link, at least, are left for what is sent
BURST = 1.3  # what a shaper lets through at first makes it look faster
FILES = {"home/run", "home/run/profile", "tmp", "home"}


def test_links_are_measured_as_they_are_shaped(home: Home) -> None:
    head = home.device("head").start_daemon(*FLAGS)
    head.wait_started()
    attic = join(head, home.device("attic", link="20mbit"))
    cellar = join(head, home.device("cellar", link="200mbit"))

    def all_measured(status: StatusAnswer) -> bool:
        return len(status.links) == 6

    status = head.wait_until(all_measured, "every link's measurement", 60)
    id_of = {member.name: member.device for member in status.members}
    links = {(link.source, link.target): link for link in status.links}
    assert set(links) == set(itertools.permutations(id_of.values(), 2))
    for one, other, rate in (("head", "attic", SLOW), ("attic", "cellar", SLOW), ("head", "cellar", FAST)):
        for way in ((id_of[one], id_of[other]), (id_of[other], id_of[one])):
            measured = links[way].bandwidth / rate
            assert TLS_AND_HEADERS < measured < BURST, (one, other, links[way])
            assert 0 < links[way].latency < 1
    for worker, name in ((attic, "attic"), (cellar, "cellar")):
        own = worker.wait_until(lambda status: len(status.links) == 4, "its own links", 20)
        assert all(id_of[name] in (link.source, link.target) for link in own.links)
    cellar.stop()
    head.wait_until(lambda status: len(status.links) == 2, "forgetting the links of who is gone", 20)


def test_a_profile_keeps_within_the_limits_of_its_device(home: Home) -> None:
    device = home.device("pi", cores=(0,), memory="512M")
    done = device.edged("profile", "--json")
    profile = DeviceProfile.model_validate_json(done.stdout)
    assert "measuring this device" in done.stderr
    assert profile.threads == 1
    assert 0 < profile.memory_budget < 512 * 2**20
    assert profile.cpu.speed("q4_0").decode > 0
    assert profile.disk_sequential > 0
    again = device.edged("profile", "--json")
    assert "measuring" not in again.stderr
    assert DeviceProfile.model_validate_json(again.stdout).lasting == profile.lasting
    capped = device.edged("profile", "--json", "--memory", "300M")
    assert "measuring this device" in capped.stderr  # another limit
    assert json.loads(capped.stdout)["memory_budget"] <= 300 * 2**20
    table = device.edged("profile").stdout
    assert "q4_K" in table
    assert "GFLOP/s" in table


@pytest.mark.parametrize("quarter", ["0 of", "17 of|1[0-6] of"])
def test_an_interrupted_profile_leaves_nothing(home: Home, quarter: str) -> None:
    device = home.device("pi")
    process = device.popen([*edged_command(), "profile"])
    process.wait_for_line(f"measuring this device: ({quarter})")
    process.interrupt()
    assert process.wait() in (130, 0)  # it may be done
    assert device.files() <= FILES
    assert "Traceback" not in process.text


def test_a_daemon_starts_with_what_is_known(home: Home) -> None:
    device = home.device("pi")
    said = []
    for _ in range(2):
        daemon = device.start_daemon(*FLAGS)
        daemon.wait_started()
        said.append("measuring this device" in daemon.log)
        assert daemon.stop() == 0
    assert said == [True, False]
