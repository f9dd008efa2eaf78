"""Where the other devices listen, and how to reach them."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import grpc

from edged.cluster.assignment import Assignment, Endpoint
from edged.cluster.identity import Identity
from edged.errors import PeerLostError
from edged.rpc.channel import connect
from edged.store.part_source import GrpcSource, PartSource


class Neighbours:
    """The address book of this device, filled by assignments. Any thread."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._lock = threading.Lock()
        self._endpoints: dict[str, Endpoint] = {}

    def learn(self, assignment: Assignment) -> None:
        with self._lock:
            self._endpoints.update({endpoint.device: endpoint for endpoint in assignment.endpoints})

    def open_channel(self, device: str) -> grpc.Channel:
        """A channel of its own to `device`, to close after use. Raises PeerLostError for an unknown one."""
        endpoint = self._endpoint(device)
        return connect(self._identity, device, endpoint.host, endpoint.port)

    def sources(self, devices: Sequence[str]) -> list[PartSource]:
        others = [
            device for device in devices if device != self._identity.device and device in self._endpoints
        ]
        return [GrpcSource(self._endpoint(device).name, self.open_channel(device)) for device in others]

    def _endpoint(self, device: str) -> Endpoint:
        with self._lock:
            endpoint = self._endpoints.get(device)
        if endpoint is None:
            raise PeerLostError(f"nobody has said where the device {device} is")
        return endpoint
