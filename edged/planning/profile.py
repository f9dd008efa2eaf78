"""What the planner knows of a device and of the network: plain numbers, measured or read from files.

Every value is hashable: the coordinator compares whole companies of devices.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from edged.documents import Document
from edged.planning.model_profile import LayerProfile, ModelProfile, TensorGroup

__all__ = [
    "ANY_TYPE",
    "ClusterProfile",
    "DeviceProfile",
    "LayerProfile",
    "LinkProfile",
    "ModelProfile",
    "ProcessorProfile",
    "Rate",
    "Seconds",
    "TensorGroup",
    "TypeSpeed",
]


def _none_or_one(rate: float) -> float:
    if 0.0 < rate < 1.0:
        raise ValueError("a rate that was measured is at least 1 a second")
    return rate


# What another device says of itself is divided by, and added up: nothing of it may come out infinite.
Rate = Annotated[float, Field(ge=1.0, le=1e18)]  # bytes or operations per second
RateIfKnown = Annotated[float, Field(ge=0.0, le=1e18), AfterValidator(_none_or_one)]  # 0: not measured
Seconds = Annotated[float, Field(ge=0.0, le=3600.0)]

ANY_TYPE = ""  # of a speed that holds for every type of weights


class TypeSpeed(Document):
    """How fast a processor multiplies by weights of one ggml type."""

    type: str  # ggml's name, such as "q4_K"; ANY_TYPE
    decode: Rate  # bytes of weights per second, for one token (matrix times vector)
    prefill: Rate  # multiply-adds x 2 per second, for a chunk of a prompt (matrix times matrix)


class ProcessorProfile(Document):
    """The CPU of a device, or one of its GPUs, as ggml knows it."""

    name: str  # ggml's: "CPU", "CUDA0", "Metal", "Vulkan1"
    kind: Literal["cpu", "gpu"]
    description: str = ""  # for people: "NVIDIA GeForce RTX 3060"
    speeds: tuple[TypeSpeed, ...] = Field(min_length=1)
    memory_bandwidth: Rate  # bytes per second of plain reading, as a KV cache is read
    # Multiply-adds x 2 per second of attention to a cache in f16 without flash attention; 0: not measured,
    # and taken to be bound by `memory_bandwidth` alone.
    attention_decode: RateIfKnown = 0.0  # one token's
    attention_prefill: RateIfKnown = 0.0  # a chunk's
    memory_budget: int = Field(default=0, ge=0)  # of a GPU: bytes of its memory edged may hold; a CPU's: 0
    shares_memory: bool = False  # its memory is the device's own (Apple, integrated): part of that budget
    run_s: Seconds = 0.0  # seconds to start one window's run on it, besides its products

    def speed(self, ggml_type: str) -> TypeSpeed:
        """The speed for `ggml_type`; where that was not measured, the one for any, else the slowest."""
        known = {speed.type: speed for speed in self.speeds}
        return known.get(ggml_type) or known.get(ANY_TYPE) or min(self.speeds, key=lambda speed: speed.decode)


class DeviceProfile(Document):
    """One device as the planner sees it."""

    device: str  # device id
    name: str
    memory_budget: int = Field(ge=0)  # bytes edged may hold: limits, cgroups and --memory respected
    disk_free: int = Field(ge=0)  # bytes for layers: free in the store's file system, or stored there already
    threads: int = Field(ge=1)
    bandwidth: Rate  # bytes of weights read per second by a matrix-vector product
    flops: Rate  # multiply-adds x 2 per second of a matrix-matrix product
    system: str = ""  # operating system and processor, for people
    os: Literal["linux", "macos", "windows", "android", ""] = ""  # "": not known
    processors: tuple[ProcessorProfile, ...] = ()  # the CPU first; (): only `bandwidth` and `flops` are known
    disk_sequential: RateIfKnown = 0.0  # bytes per second past the page cache; 0: not measured
    disk_random: RateIfKnown = 0.0  # the same in pieces of a page cluster at random places
    # Seconds that a hop takes besides its link's latency when both ends compute: caches are cold and threads
    # must be woken. Measured between daemons: 0.3 ms a hop when idle, 1.1 between computing windows.
    hop_overhead_s: Seconds = 0.0008

    @model_validator(mode="after")
    def _cpu_comes_first(self) -> Self:
        kinds = [processor.kind for processor in self.processors]
        if kinds and (kinds[0] != "cpu" or "cpu" in kinds[1:]):
            raise ValueError("the first processor is the CPU, and there is one")
        return self

    @property
    def cpu(self) -> ProcessorProfile:
        if self.processors:
            return self.processors[0]
        any_type = TypeSpeed(type=ANY_TYPE, decode=self.bandwidth, prefill=self.flops)
        return ProcessorProfile(name="CPU", kind="cpu", speeds=(any_type,), memory_bandwidth=self.bandwidth)

    @property
    def gpus(self) -> tuple[ProcessorProfile, ...]:
        return self.processors[1:]

    @property
    def lasting(self) -> Self:
        """Without what changes from one moment to the next."""
        processors = tuple(one.model_copy(update={"memory_budget": 0}) for one in self.processors)
        return self.model_copy(update={"memory_budget": 0, "disk_free": 0, "processors": processors})


class LinkProfile(Document):
    """The way of frames from one device to another, over the real path: gRPC, TLS, network."""

    source: str  # device id
    target: str
    latency: Seconds  # one way for a small frame, both ends idle
    bandwidth: Rate  # bytes per second


class ClusterProfile(Document):
    """Devices and the links between them; `head` is where rings begin and end."""

    name: str = ""
    head: str  # device id
    devices: tuple[DeviceProfile, ...] = Field(min_length=1)
    links: tuple[LinkProfile, ...] = ()
    # What is assumed of a pair that nobody has measured: a home's Wi-Fi.
    unmeasured_latency: Seconds = 0.003
    unmeasured_bandwidth: Rate = 20e6  # bytes per second

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        ids = [device.device for device in self.devices]
        if len(set(ids)) < len(ids):
            raise ValueError("a device is listed twice")
        if self.head not in ids:
            raise ValueError(f"the head {self.head} is not among the devices")
        return self

    @cached_property
    def by_id(self) -> dict[str, DeviceProfile]:
        return {device.device: device for device in self.devices}

    @cached_property
    def _by_ends(self) -> dict[tuple[str, str], LinkProfile]:
        return {(link.source, link.target): link for link in self.links}

    def link(self, source: str, target: str) -> LinkProfile:
        """The link between two devices: as measured, else as measured the other way, else assumed."""
        known = self._by_ends.get((source, target)) or self._by_ends.get((target, source))
        return known or LinkProfile(
            source=source,
            target=target,
            latency=self.unmeasured_latency,
            bandwidth=self.unmeasured_bandwidth,
        )

    def with_device(self, device: DeviceProfile) -> Self:
        """The same cluster where `device` is as given; a copy by `model_copy` would keep the old look-ups."""
        return self.with_devices(
            tuple(device if one.device == device.device else one for one in self.devices)
        )

    def with_devices(self, devices: tuple[DeviceProfile, ...]) -> Self:
        """The same cluster with these figures of its devices."""
        return self._with(devices=devices)

    def with_head(self, device: str) -> Self:
        """The same cluster with another head."""
        return self if device == self.head else self._with(head=device)

    def with_links(self, links: tuple[LinkProfile, ...]) -> Self:
        """The same cluster with other links."""
        return self._with(links=links)

    def _with(self, **changes: object) -> Self:
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**{**fields, **changes})
