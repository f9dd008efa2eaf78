"""Documents of the front door: what the command line asks of its daemon, and what it is told."""

from __future__ import annotations

from typing import Literal

from edged.documents import Document
from edged.planning.plan import Plan
from edged.planning.profile import DeviceProfile, LinkProfile


class Progress(Document):
    """One step of something long. `done` of `total` are in `unit`; total 0 means the end is not known."""

    stage: str  # "fetching layers", "loading layers", ...: for a person
    device: str = ""
    done: int = 0
    total: int = 0
    unit: Literal["bytes", "layers", "steps"] = "steps"
    finished: bool = False


class LoadRequest(Document):
    model: str


class ModelsQuery(Document):
    pass


class ModelSummary(Document):
    name: str
    id: str
    architecture: str
    n_layers: int
    n_ctx_train: int
    size: int  # bytes of all parts
    held: int  # bytes of them on this device
    loaded: bool = False
    created: int = 0  # Unix seconds


class ModelsAnswer(Document):
    models: tuple[ModelSummary, ...]


class StatusQuery(Document):
    pass


class MemberStatus(Document):
    device: str
    name: str
    address: str
    state: Literal["alive", "silent", "left"]
    is_coordinator: bool = False
    version: str = ""
    memory_budget: int = 0
    last_seen_s: float = 0.0  # seconds ago


class StatusAnswer(Document):
    device: str
    name: str
    version: str
    cluster: str  # fingerprint of the cluster's CA
    coordinator: str  # device id
    http: str  # HOST:PORT, or "" where HTTP is off
    state: Literal["idle", "planning", "loading", "ready", "failed"]
    problem: str = ""  # one line, where state is "failed" or the ring has just broken
    model: str = ""  # name of the loaded model
    plan: Plan | None = None
    members: tuple[MemberStatus, ...] = ()
    active_requests: int = 0
    waiting_requests: int = 0
    measured_tpot_ms: float | None = None
    links: tuple[LinkProfile, ...] = ()  # as measured; on a device that is not the head, those of its own
    rounds: int | None = None  # `edged start --rounds` of the head, as far as it is known here
    profiles: tuple[DeviceProfile, ...] = ()  # what plans are made from; on the head only, its own first


class TokenRequest(Document):
    pass


class TokenAnswer(Document):
    token: str
    expires_in_s: int


class StopRequest(Document):
    pass


class StopAnswer(Document):
    pid: int
