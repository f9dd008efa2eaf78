"""What the coordinator says to one device, over mutual TLS."""

from __future__ import annotations

from collections.abc import Iterator

import grpc

from edged.cluster.assignment import Assignment, EpochAnswer, EpochNotice
from edged.errors import EdgedError, StalledError
from edged.rpc import edged_pb2, edged_pb2_grpc
from edged.rpc.messages import Progress
from edged.rpc.status import unwrap
from edged.watchdog import Watchdog

SHORT_S = 5.0  # for answers that need no work
ACTIVATE_S = 15.0  # longer than a stage takes to give up on a link that does not open
STALL_S = 1800.0  # between two steps of a preparation, of which one may read a window from a slow disk
PING_S = 1.5  # a home network answers in milliseconds; a machine under load in a few hundred


class MemberClient:
    """Calls of the service Member on one device. All raise EdgedError, PeerLostError if it is gone."""

    def __init__(self, channel: grpc.Channel, name: str) -> None:
        self.name = name
        self._channel = channel
        self._stub = edged_pb2_grpc.MemberStub(channel)

    def prepare(self, assignment: Assignment) -> Iterator[Progress]:
        """Progress until the device holds its windows of the assignment's epoch.

        Raises StalledError if it answers, but makes no step for half an hour.
        """
        call = self._stub.Prepare(edged_pb2.Document(body=assignment.pack()))
        with Watchdog(f"prepare-watch-{self.name}", STALL_S, call.cancel) as watchdog:
            try:
                for document in call:
                    watchdog.feed()
                    yield Progress.unpack(document.body)
            except grpc.RpcError as error:
                if watchdog.has_bitten:
                    raise StalledError(f"{self.name} did not get on with its layers") from None
                raise unwrap(error, self.name) from None
            finally:
                call.cancel()

    def activate(self, epoch: int) -> None:
        self._notify(self._stub.Activate, epoch, ACTIVATE_S)

    def release(self, epoch: int) -> None:
        """The device drops windows and layers of every epoch up to `epoch`."""
        self._notify(self._stub.Release, epoch, SHORT_S)

    def is_alive(self) -> bool:
        try:
            self._notify(self._stub.Ping, 0, PING_S)
        except EdgedError:
            return False
        return True

    def is_computing(self) -> bool:
        """Whether a window runs there at this moment; False also where nobody answers."""
        try:
            return self._notify(self._stub.Ping, 0, PING_S).computing
        except EdgedError:
            return False

    def close(self) -> None:
        self._channel.close()

    def _notify(self, method: grpc.UnaryUnaryMultiCallable, epoch: int, timeout: float) -> EpochAnswer:
        request = edged_pb2.Document(body=EpochNotice(epoch=epoch).pack())
        try:
            return EpochAnswer.unpack(method(request, timeout=timeout).body)
        except grpc.RpcError as error:
            raise unwrap(error, self.name) from None
