"""Measuring the way from this device to another: what frames take, over the same gRPC and TLS."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from queue import SimpleQueue

import grpc

from edged.cluster.messages import LinkAnswer
from edged.errors import EdgedError, PeerLostError
from edged.rpc import edged_pb2, edged_pb2_grpc
from edged.rpc.status import unwrap

ECHOES = 12
LEAST_ECHOES = 3  # on a slow way
WARM_ECHOES = 2  # of them, that do not count: the connection is made
ECHO_BYTES = 64
ECHO_S = 0.15  # for all of them, where the way is slow
PIECE = 32 * 2**10  # bytes of one message
MOST_BYTES = 8 * 2**20
SEND_S = 0.2
LEAST_PIECES = 8  # on a way so slow that fewer would be sent in the time
CALL_TIMEOUT_S = 8.0
LEAST_S = 1e-6  # no clock is finer


def measure_link(channel: grpc.Channel, name: str) -> LinkAnswer:
    """The way over `channel` to the device that people call `name`; a few hundred ms, at most 8 MB.

    latency: half of the usual round trip of a small message on an open stream. bandwidth: of a stream that
    has got going. Raises EdgedError, OverloadedError where that device takes part in another measurement.
    """
    stub = edged_pb2_grpc.LinkStub(channel)
    try:
        return LinkAnswer(latency=_latency(stub), bandwidth=_bandwidth(stub, name))
    except grpc.RpcError as error:
        raise unwrap(error, name) from None
    except ValueError:  # from gRPC, on a channel that was closed meanwhile
        raise PeerLostError(f"the measurement of the link to {name} was broken off") from None


def _latency(stub: edged_pb2_grpc.LinkStub) -> float:
    outgoing: SimpleQueue[edged_pb2.Probe | None] = SimpleQueue()
    call = stub.Echo(iter(outgoing.get, None), timeout=CALL_TIMEOUT_S)
    probe = edged_pb2.Probe(data=bytes(ECHO_BYTES))
    times: list[float] = []
    end = 0.0
    try:
        for number in range(WARM_ECHOES + ECHOES):
            began = time.perf_counter()
            outgoing.put(probe)
            next(call)
            now = time.perf_counter()
            if number < WARM_ECHOES:
                end = now + ECHO_S
                continue
            times.append(now - began)
            if len(times) >= LEAST_ECHOES and now > end:
                break
        outgoing.put(None)
        for _ in call:  # to its proper end, so that the far end is free again
            pass
    finally:
        outgoing.put(None)
        call.cancel()
    return statistics.median(times) / 2


def _bandwidth(stub: edged_pb2_grpc.LinkStub, name: str) -> float:
    receipt = stub.Sink(_pieces(), timeout=CALL_TIMEOUT_S)
    if receipt.bytes == 0:
        raise EdgedError(f"{name} got nothing of what was sent to measure the link")
    return float(receipt.bytes / max(receipt.seconds, LEAST_S))


def _pieces() -> Iterator[edged_pb2.Probe]:
    piece = edged_pb2.Probe(data=bytes(PIECE))
    end = time.perf_counter() + SEND_S
    for number in range(MOST_BYTES // PIECE):
        if number >= LEAST_PIECES and time.perf_counter() > end:
            return
        yield piece
