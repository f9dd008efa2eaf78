"""What the coordinator asks of each device for one epoch."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from edged.documents import Document
from edged.planning.plan import Plan


class Endpoint(Document):
    """Where a device listens. An empty host means: the address from which this assignment came."""

    device: str
    name: str
    host: str
    port: int = Field(ge=1, le=65535)


class Assignment(Document):
    """The plan, the model it is for, and everybody's address. The same document goes to every device."""

    plan: Plan
    manifest: bytes  # a packed store.manifest.Manifest
    endpoints: tuple[Endpoint, ...]
    sources: tuple[str, ...]  # devices to ask for missing parts, the likeliest first

    @property
    def names(self) -> dict[str, str]:
        """What people call the devices, by id."""
        return {endpoint.device: endpoint.name for endpoint in self.endpoints}


def with_names(text: str, names: Mapping[str, str]) -> str:
    """`text` for people: below this package a device is its id."""
    for device, name in names.items():
        text = text.replace(device, name)
    return text


class EpochNotice(Document):
    epoch: int = Field(ge=0)


class EpochAnswer(Document):
    """Answers Activate, Release and Ping with the epoch the device now serves (0: none)."""

    epoch: int
    computing: bool = False  # at this moment
