"""Documents of membership: what members report to the coordinator, and what they learn from it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edged.cluster.assignment import Endpoint
from edged.documents import Document
from edged.planning.plan import Plan
from edged.planning.profile import DeviceProfile, LinkProfile, Rate, Seconds
from edged.rpc.messages import MemberStatus

DeviceName = Field(pattern=r"^[^\p{C}]{1,63}$")  # no control characters: it is shown in terminals


class BrokenRing(Document):
    """The ring of an epoch lost a link, as this device saw it."""

    epoch: int = Field(ge=1)
    reason: str = Field(max_length=500)
    offender: str = Field(default="", max_length=64)  # device id, where one broke the rules


class HeartbeatReport(Document):
    """One heartbeat. The device it is from is the one in the sender's certificate."""

    run: str = Field(pattern=r"^[0-9a-f]{16}$")  # drawn at each start of the daemon: a quick restart shows
    name: str = DeviceName
    version: str = Field(max_length=40)
    port: int = Field(ge=1, le=65535)  # the daemon's gRPC port; its host is where the heartbeat comes from
    profile: DeviceProfile
    models: tuple[str, ...] = Field(default=(), max_length=10_000)  # Manifest.id of those it owns
    epoch: int = Field(default=0, ge=0)  # the epoch it serves; 0: none
    broken: BrokenRing | None = None
    given_up: int = Field(default=0, ge=0)  # layers that it streams against the plan: its memory is short


class ClusterView(Document):
    """The coordinator's answer to a heartbeat: the cluster as it sees it."""

    coordinator: str  # device id
    members: tuple[MemberStatus, ...] = ()  # the coordinator among them
    epoch: int = 0  # of the ring that runs; 0: none
    state: Literal["idle", "planning", "loading", "ready", "failed"] = "idle"
    problem: str = ""
    model: str = ""  # name of the model in the ring
    plan: Plan | None = None
    links: tuple[LinkProfile, ...] = ()  # measured ones, to and from the device that asks


class LinkQuery(Document):
    """Measure the way from the device that is asked to `target`."""

    target: Endpoint


class LinkAnswer(Document):
    latency: Seconds  # one way
    bandwidth: Rate  # bytes per second


class LeaveNotice(Document):
    """A daemon that stops says goodbye, so that nobody waits for it."""

    run: str


class LeaveAnswer(Document):
    pass
