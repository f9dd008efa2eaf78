"""Where parts can be had from: one other device, over gRPC."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol

import grpc

import edged.rpc.edged_pb2 as pb
from edged.errors import DocumentError
from edged.rpc.edged_pb2_grpc import StoreStub
from edged.rpc.status import unwrap
from edged.store.messages import PartAnswer, PartQuery

ASK_S = 10.0
SLOWEST_BYTES_PER_S = 50_000  # slower than any home network: whoever is, has stopped


class PartSource(Protocol):
    """One device that may have parts. Methods may run in several threads at once, and raise EdgedError."""

    @property
    def device(self) -> str:
        """The device's name, for a person."""
        ...

    def which(self, shas: Sequence[str]) -> set[str]:
        """Those of these parts that it has."""
        ...

    def fetch(self, sha256: str, offset: int, size: int) -> Generator[bytes, None, None]:
        """The bytes of a part of `size` bytes from `offset` on. Closing the iterator ends the transfer."""
        ...

    def close(self) -> None:
        """End all transfers."""
        ...


class GrpcSource:
    """A device at the other end of `channel`, which `close` closes."""

    def __init__(self, device: str, channel: grpc.Channel) -> None:
        self._device = device
        self._channel = channel
        self._stub = StoreStub(channel)

    @property
    def device(self) -> str:
        return self._device

    def which(self, shas: Sequence[str]) -> set[str]:
        query = pb.Document(body=PartQuery(shas=tuple(shas)).pack())
        try:
            answer = self._stub.Which(query, timeout=ASK_S)
        except grpc.RpcError as error:
            raise unwrap(error, self._device) from None
        except ValueError:
            raise DocumentError(f"the connection to {self._device} is closed") from None
        return set(PartAnswer.unpack(answer.body).held) & set(shas)

    def fetch(self, sha256: str, offset: int, size: int) -> Generator[bytes, None, None]:
        deadline = ASK_S + (size - offset) / SLOWEST_BYTES_PER_S
        try:
            stream = self._stub.Fetch(pb.PartRequest(sha256=sha256, offset=offset), timeout=deadline)
        except ValueError:
            raise DocumentError(f"the connection to {self._device} is closed") from None
        try:
            for chunk in stream:
                yield chunk.data
        except grpc.RpcError as error:
            raise unwrap(error, self._device) from None
        finally:
            stream.cancel()

    def close(self) -> None:
        self._channel.close()
