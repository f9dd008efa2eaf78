"""The plan: who runs which layers, numbered by an epoch. Exactly-once coverage is checked here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from edged.documents import Document
from edged.errors import PlanError

KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
FlashAttention = Literal["auto", "on", "off"]
WireType = Literal["f32", "f16", "q8"]
Objective = Literal["latency", "throughput"]


class ContextOptions(Document):
    """How every window of a plan keeps its context; the same on all hops, or exactness is lost."""

    n_ctx: int = Field(ge=16)  # positions per sequence
    n_seq_max: int = Field(ge=1, le=64)  # sequences held at once, each with n_ctx positions of its own
    n_ubatch: int = Field(ge=1, le=4096)  # most tokens in one frame
    kv_type: KvType = "f16"
    flash_attention: FlashAttention = "auto"
    wire_type: WireType = "f32"


class Hop(Document):
    """One window's place in the ring: layers [first, last) on one device."""

    device: str
    first: int = Field(ge=0)
    last: int = Field(ge=1)
    streamed: int = Field(default=0, ge=0)  # of these layers, how many are read again for every token
    gpu_layers: int = Field(default=0, ge=0)  # the rest stay in memory
    read_ahead: int = Field(default=0, ge=0)  # streamed layers that its device's read-ahead buffer holds
    streams_output: bool = False  # of the last hop: its output matrix is read again for every token too

    @property
    def n_layers(self) -> int:
        return self.last - self.first

    @property
    def resident(self) -> int:
        """Layers that the CPU runs out of memory."""
        return self.n_layers - self.streamed - self.gpu_layers


class LeftOut(Document):
    """A device that takes no part in a plan, and why (one line for a person)."""

    device: str
    reason: str
    would_cost_ms: float | None = None  # per token, more than the plan's, with the device in the ring


class DeviceExpectation(Document):
    """What the planner expects of one device in the ring, per generated token."""

    device: str
    compute_ms: float  # its windows, one after the other
    stall_ms: float  # waiting for layers from disk in the middle of a window
    hop_ms: float  # frames on their way to it, software included
    disk_ms: float  # its disk's work, most of it hidden behind the others' compute
    bytes_read: int
    memory: int  # bytes of RAM
    memory_left: int
    gpu_memory: int = 0
    gpu_memory_left: int = 0


class Expectation(Document):
    """What the planner expects of its plan, to be held against measurement."""

    tpot_ms: float  # milliseconds per generated token, one stream
    ttft_ms_per_token: float  # milliseconds of prefill per prompt token
    bytes_read_per_token: int
    memory: dict[str, int]  # bytes per device
    ttft_ms: float = 0.0  # for a prompt of `prompt` tokens
    prompt: int = 0
    stage_ms: float = 0.0  # of the slowest device or link: with many streams, one token each so often
    devices: tuple[DeviceExpectation, ...] = ()  # in order of first visit


class Plan(Document):
    """Ring, residency and context of one model. Valid by construction: see `_covers_exactly_once`."""

    epoch: int = Field(ge=1)
    model: str  # Manifest.id
    n_layers: int = Field(ge=1)
    hops: tuple[Hop, ...] = Field(min_length=1)
    context: ContextOptions
    left_out: tuple[LeftOut, ...] = ()
    expected: Expectation | None = None
    rounds: int = Field(default=1, ge=1)  # how often the ring comes by its head; other devices may differ
    solver: str = ""  # what made the plan
    objective: Objective = "latency"
    note: str = ""  # where this is less than the user wished: what, and why

    @model_validator(mode="after")
    def _covers_exactly_once(self) -> Self:
        at = 0
        for hop in self.hops:
            if hop.first != at or hop.last <= hop.first:
                raise ValueError(f"layer {at} is not covered exactly once: {self.describe()}")
            if hop.streamed + hop.gpu_layers > hop.n_layers:
                raise ValueError(f"more layers placed than the window has: {self.describe()}")
            at = hop.last
        if at != self.n_layers:
            raise ValueError(f"layers {at} to {self.n_layers} are not covered: {self.describe()}")
        if self.hops[0].device != self.hops[-1].device:
            raise ValueError(f"the ring does not close at its head: {self.describe()}")
        return self

    @property
    def head(self) -> str:
        return self.hops[0].device

    @property
    def devices(self) -> tuple[str, ...]:
        """Devices in the ring, each once, in order of first visit."""
        return tuple(dict.fromkeys(hop.device for hop in self.hops))

    def hops_of(self, device: str) -> tuple[int, ...]:
        """Places in the ring (indices into `hops`) that `device` runs."""
        return tuple(i for i, hop in enumerate(self.hops) if hop.device == device)

    def successor(self, hop: int) -> Hop:
        if not 0 <= hop < len(self.hops) - 1:
            raise PlanError(f"hop {hop} has no successor in a ring of {len(self.hops)}")
        return self.hops[hop + 1]

    def describe(self, names: Mapping[str, str] | None = None) -> str:
        """The ring in one line: `nuc[0,4) → pi[4,9) → nuc[9,12)`; `names` are used instead of device ids."""
        names = names or {}
        return " → ".join(f"{names.get(hop.device, hop.device)}[{hop.first},{hop.last})" for hop in self.hops)
