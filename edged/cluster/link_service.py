"""The far end of a link's measurement: probes come back, or are swallowed and counted."""

from __future__ import annotations

import time
from collections.abc import Iterator

import grpc

from edged.errors import InvalidRequestError
from edged.rpc import edged_pb2, edged_pb2_grpc
from edged.rpc.limit import Limit
from edged.rpc.server import peer_device
from edged.rpc.status import guard

MOST_ECHOES = 64
MOST_ECHO_BYTES = 64 * 2**10
MOST_SINK_BYTES = 16 * 2**20  # twice what is ever sent: a device that sends more has something else in mind
GETTING_GOING = 4  # the first quarter does not count: until then gRPC learns how much the link bears


class LinkService(edged_pb2_grpc.LinkServicer):
    """Serves `Link` to devices of the cluster; one measurement at a time, the next is refused."""

    def __init__(self) -> None:
        self._one = Limit(1, "measurements of links")

    def add_to(self, server: grpc.Server) -> None:
        edged_pb2_grpc.add_LinkServicer_to_server(self, server)

    @guard
    def Echo(
        self, requests: Iterator[edged_pb2.Probe], context: grpc.ServicerContext
    ) -> Iterator[edged_pb2.Probe]:
        peer_device(context)
        with self._one.one():
            for number, probe in enumerate(requests):
                if number >= MOST_ECHOES or len(probe.data) > MOST_ECHO_BYTES:
                    raise InvalidRequestError("that is more than the measurement of a link takes")
                yield probe

    @guard
    def Sink(
        self, requests: Iterator[edged_pb2.Probe], context: grpc.ServicerContext
    ) -> edged_pb2.SinkReceipt:
        peer_device(context)
        arrivals: list[tuple[float, int]] = []  # when, and how many bytes until then
        total = 0
        with self._one.one():
            for probe in requests:
                total += len(probe.data)
                if total > MOST_SINK_BYTES:
                    raise InvalidRequestError("that is more than the measurement of a link takes")
                arrivals.append((time.perf_counter(), total))
        return _receipt(arrivals)


def _receipt(arrivals: list[tuple[float, int]]) -> edged_pb2.SinkReceipt:
    if len(arrivals) < 2:
        return edged_pb2.SinkReceipt()
    end, total = arrivals[-1]
    began, before = next(
        ((when, count) for when, count in arrivals[:-1] if count * GETTING_GOING >= total), arrivals[0]
    )
    return edged_pb2.SinkReceipt(bytes=total - before, seconds=end - began)
