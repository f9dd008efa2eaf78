"""What the planner knows of a device and of a model: plain numbers, measured elsewhere."""

from __future__ import annotations

from typing import Self

from pydantic import Field

from edged.documents import Document


class DeviceProfile(Document):
    """One device as the planner sees it."""

    device: str  # device id
    name: str
    memory_budget: int = Field(ge=0)  # bytes edged may hold: limits, cgroups and --memory respected
    disk_free: int = Field(ge=0)  # bytes in the store's file system
    threads: int = Field(ge=1)
    bandwidth: float = Field(gt=0)  # bytes of weights read per second by a matrix-vector product
    flops: float = Field(gt=0)  # multiply-adds x 2 per second of a matrix-matrix product
    system: str = ""  # operating system and processor, for people

    @property
    def lasting(self) -> Self:
        """Without what changes from one moment to the next."""
        return self.model_copy(update={"memory_budget": 0, "disk_free": 0})


class ModelProfile(Document):
    """One model as the planner sees it."""

    model: str  # Manifest.id
    n_layers: int = Field(ge=1)
    n_embd: int = Field(ge=1)
    n_vocab: int = Field(ge=1)
    n_heads: int = Field(ge=1)  # of attention, the most that any layer has
    boundaries: tuple[int, ...]  # layers at which it may be cut; () runs whole only
    whole_because: str = ""  # why there are none, for a person
    layer_bytes: tuple[int, ...]  # weights per layer
    embedding_bytes: int
    output_bytes: int  # what the last window loads besides its layers
    kv_bytes_per_token_layer: int  # both K and V, at two bytes per value
    n_ctx_train: int

    @property
    def total_bytes(self) -> int:
        return sum(self.layer_bytes) + self.output_bytes
