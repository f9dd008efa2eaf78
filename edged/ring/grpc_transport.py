"""Links over gRPC: one long-lived client stream (`Ring.Pass`) per link.

A stream belongs to one epoch, named in its metadata. The receiver answers with its first metadata as soon
as it has accepted the sender, so `connect` returns a link that is known to work.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping

import grpc

import edged.rpc.edged_pb2 as pb
from edged.errors import EdgedError, FrameError, RingBrokenError, RingError
from edged.ring.codec import FrameFormat
from edged.ring.frame import Frame
from edged.ring.outbox import Outbox
from edged.ring.reception import Reception
from edged.ring.transport import Endpoint, Link, OnBroken
from edged.rpc.options import MAX_MESSAGE_BYTES
from edged.rpc.status import abort, unwrap

SERVICE = "edged.v1.Ring"
METHOD = "Pass"
EPOCH_KEY = "edged-epoch"
ACCEPTED_KEY = "edged-accepted"
OPEN_S = 10.0  # connection, TLS handshake and acceptance together
DRAIN_S = 1.0  # a closing link may send this long; a ring that closes needs none of it


class GrpcTransport:
    """Opens links from this device, and serves those of its predecessors once `add_to` a server.

    open_channel: a channel of its own to a device (a link closes it); raises EdgedError.
    peer_device:  the authenticated device at the other end of a call; raises UntrustedPeerError.
    Each link in occupies one thread of the server's pool for as long as it is open.
    """

    def __init__(
        self,
        open_channel: Callable[[str], grpc.Channel],
        peer_device: Callable[[grpc.ServicerContext], str],
    ) -> None:
        self._open_channel = open_channel
        self._peer_device = peer_device
        self._reception = Reception()
        self._lock = threading.Lock()
        self._left = 0  # the newest epoch that this device has left
        self._opening: dict[GrpcLink, int] = {}  # epochs of links that are not accepted yet

    def add_to(self, server: grpc.Server) -> None:
        # Requests stay bytes here: an error in gRPC's own deserialiser would reach nobody but its log.
        handler = grpc.stream_unary_rpc_method_handler(
            self._pass, response_serializer=pb.Receipt.SerializeToString
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))

    def attach(self, endpoint: Endpoint) -> None:
        self._reception.attach(endpoint)

    def detach(self, epoch: int) -> None:
        with self._lock:
            self._left = max(self._left, epoch)
            given_up = [link for link, of in self._opening.items() if of <= epoch]
        for link in given_up:
            link.abandon()
        self._reception.detach(epoch)

    def connect(self, device: str, epoch: int, form: FrameFormat, capacity: int, on_broken: OnBroken) -> Link:
        if form.max_bytes > MAX_MESSAGE_BYTES:
            raise RingError(
                f"{form.max_tokens} tokens of {form.width} values are too much for one frame: "
                "choose a smaller n_ubatch"
            )
        link = GrpcLink(device, self._open_channel(device), epoch, Outbox(form, capacity), on_broken)
        with self._lock:
            self._opening[link] = epoch
            left = epoch <= self._left
        try:
            if left:
                raise RingBrokenError(f"this device has left the ring of epoch {epoch}")
            link.open()
        except RingBrokenError:
            link.close()
            raise
        finally:
            with self._lock:
                del self._opening[link]
        return link

    def _pass(self, frames: Iterator[bytes], context: grpc.ServicerContext) -> pb.Receipt:
        try:
            sender = self._peer_device(context)
            visit = self._reception.admit(sender, _epoch_of(context), context.cancel)
        except EdgedError as error:
            abort(context, error)
        received = 0
        reason: EdgedError = RingBrokenError(f"{sender} closed its link of the ring")
        try:
            context.send_initial_metadata(((ACCEPTED_KEY, "1"),))
            for raw in frames:
                visit.accept(raw)
                received += 1
        except FrameError as error:
            reason = error
            abort(context, error)
        except grpc.RpcError:  # what the iterator raises where the stream did not end as it should
            reason = RingBrokenError(f"the link from {sender} broke")
        finally:
            self._reception.leave(visit, reason)
        return pb.Receipt(frames=received)


class GrpcLink:
    """One stream to a successor. gRPC's own sender thread takes the frames from the outbox."""

    def __init__(
        self, device: str, channel: grpc.Channel, epoch: int, outbox: Outbox, on_broken: OnBroken
    ) -> None:
        self._device = device
        self._channel = channel
        self._outbox = outbox
        self._on_broken = on_broken
        self._lock = threading.Lock()
        self._silent = True  # until accepted, the error is open()'s to raise
        self._over = threading.Event()
        call = channel.stream_unary(f"/{SERVICE}/{METHOD}", response_deserializer=pb.Receipt.FromString)
        self._call = call.future(iter(outbox), metadata=((EPOCH_KEY, str(epoch)),))
        self._call.add_done_callback(self._ended)

    @property
    def device(self) -> str:
        return self._device

    @property
    def bytes_sent(self) -> Mapping[int, int]:
        return self._outbox.bytes_sent

    def open(self) -> None:
        """Wait until the other end has accepted. Raises RingBrokenError."""
        timer = threading.Timer(OPEN_S, self._call.cancel)
        timer.name = f"ring-open-{self._device}"
        timer.start()
        try:
            metadata = self._call.initial_metadata()
        finally:
            timer.cancel()
            timer.join()
        with self._lock:
            accepted = any(key == ACCEPTED_KEY for key, _ in metadata or ())
            if accepted and not self._over.is_set():
                self._silent = False
                return
        self._over.wait(OPEN_S)
        raise self._error("cannot open the ring's link to")

    def send(self, frame: Frame) -> None:
        self._outbox.put(frame)

    def abandon(self) -> None:
        with self._lock:
            self._silent = True
        self._outbox.drop(RingBrokenError(f"the link to {self._device} is closed"))
        self._call.cancel()

    def close(self) -> None:
        with self._lock:
            self._silent = True
        self._outbox.finish(RingBrokenError(f"the link to {self._device} is closed"))
        self._over.wait(DRAIN_S)  # the receipt comes when everything has been taken
        self.abandon()
        self._over.wait()
        self._channel.close()
        self._outbox.done.wait(DRAIN_S)

    def _ended(self, _call: grpc.Future) -> None:
        error = self._error("lost the ring's link to")
        self._outbox.drop(error)
        with self._lock:
            self._over.set()
            silent, self._silent = self._silent, True
        if not silent:
            self._on_broken(error)

    def _error(self, what: str) -> RingBrokenError:
        reason = unwrap(self._call, self._device).message
        if self._call.code() is grpc.StatusCode.CANCELLED:
            reason = "it left the ring, or did not answer in time"
        return RingBrokenError(f"{what} {self._device}: {reason}")


def _epoch_of(context: grpc.ServicerContext) -> int:
    for key, value in context.invocation_metadata():
        if key == EPOCH_KEY and isinstance(value, str) and value.isdecimal() and len(value) < 20:
            return int(value)
    raise FrameError(f"a stream into the ring without {EPOCH_KEY}")
