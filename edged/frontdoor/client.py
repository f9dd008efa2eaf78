"""The front door from outside: what the command line, and devices that are not the head, ask of a daemon."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import grpc

from edged.documents import Document
from edged.errors import EdgedError, NotRunningError
from edged.frontdoor.apart import Apart, Calls, Here
from edged.rpc.channel import connect_local
from edged.rpc.edged_pb2 import Document as Envelope
from edged.rpc.edged_pb2_grpc import FrontDoorStub
from edged.rpc.messages import (
    LoadRequest,
    ModelsAnswer,
    ModelsQuery,
    ModelSummary,
    Progress,
    StatusAnswer,
    StatusQuery,
    StopAnswer,
    StopRequest,
    TokenAnswer,
    TokenRequest,
)
from edged.rpc.status import unwrap
from edged.serving.generation import GenerateEvent, GenerateRequest, Generation

QUICK_S = 10.0  # for questions that a daemon answers from memory

Answer = TypeVar("Answer", bound=Document)


class RemoteGeneration:
    """A request that another process runs. Iterate it one way or the other, once."""

    def __init__(
        self, call: grpc.Call, translate: Callable[[grpc.RpcError], EdgedError], calls: Calls
    ) -> None:
        self._call = call
        self._translate = translate
        self._calls = calls
        self._cancelled = False  # no threading.Event: `cancel` may run in a signal's handler

    def __iter__(self) -> Iterator[GenerateEvent]:
        try:
            for envelope in self._calls.each(self._call):
                yield GenerateEvent.unpack(envelope.body)
        except grpc.RpcError as error:
            if self._cancelled and error.code() is grpc.StatusCode.CANCELLED:
                yield GenerateEvent(finish_reason="cancelled")
                return
            raise self._translate(error) from None
        finally:
            self.cancel()  # an abandoned loop hangs up; after the end this does nothing

    async def __aiter__(self) -> AsyncIterator[GenerateEvent]:
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[GenerateEvent | Exception | None] = asyncio.Queue()

        def pump() -> None:
            last: Exception | None = None
            try:
                for event in self:
                    loop.call_soon_threadsafe(arrived.put_nowait, event)
            except Exception as error:  # noqa: BLE001 - raised again in the task that iterates
                last = error
            loop.call_soon_threadsafe(arrived.put_nowait, last)

        thread = threading.Thread(target=pump, name="front-door-events")
        thread.start()
        try:
            while (event := await arrived.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.cancel()
            thread.join()  # at once: the call has ended or was just cancelled

    def cancel(self) -> None:
        self._cancelled = True
        self._call.cancel()


class FrontDoorClient:
    """Speaks to one daemon over `channel`; every method raises the EdgedError that the daemon raised.

    `device` is what messages call the other end; `absent` is what to raise where nobody answers at all (None:
    PeerLostError), `calls` where the calls are made.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        device: str,
        absent: NotRunningError | None = None,
        calls: Calls | None = None,
    ) -> None:
        self._device = device
        self._absent = absent
        self._calls = calls or Here()
        self._stub = self._calls.once(lambda: FrontDoorStub(channel))

    def generate(self, request: GenerateRequest) -> Generation:
        call = self._calls.once(lambda: self._stub.Generate(_envelope(request)))
        return RemoteGeneration(call, self._translate, self._calls)

    def load(self, model: str) -> Iterator[Progress]:
        """Steps until `model` is ready in the ring; leaving the loop early does not undo the loading."""
        call = self._calls.once(lambda: self._stub.Load(_envelope(LoadRequest(model=model))))
        try:
            for envelope in self._calls.each(call):
                yield Progress.unpack(envelope.body)
        except grpc.RpcError as error:
            raise self._translate(error) from None
        finally:
            call.cancel()

    def models(self) -> tuple[ModelSummary, ...]:
        return self._ask(self._stub.Models, ModelsQuery(), ModelsAnswer).models

    def status(self) -> StatusAnswer:
        return self._ask(self._stub.Status, StatusQuery(), StatusAnswer)

    def token(self) -> TokenAnswer:
        return self._ask(self._stub.Token, TokenRequest(), TokenAnswer)

    def stop(self) -> StopAnswer:
        """The daemon's process id; the process ends soon after."""
        return self._ask(self._stub.Stop, StopRequest(), StopAnswer)

    def _ask(self, method: Callable[..., Envelope], question: Document, answer: type[Answer]) -> Answer:
        try:
            reply = self._calls.once(lambda: method(_envelope(question), timeout=QUICK_S))
            return answer.unpack(reply.body)
        except grpc.RpcError as error:
            raise self._translate(error) from None

    def _translate(self, error: grpc.RpcError) -> EdgedError:
        if self._absent is not None and error.code() is grpc.StatusCode.UNAVAILABLE:
            return self._absent
        return unwrap(error, self._device)


@contextmanager
def open_front_door(path: Path) -> Iterator[FrontDoorClient]:
    """The daemon whose socket is `path`, for a program that Ctrl-C may end at any moment.

    Raises NotRunningError where none listens there.
    """
    absent = NotRunningError(f"no daemon answers in {path.parent.parent}; start one with: edged start")
    if not is_listening(path):
        raise absent
    calls = Apart()
    channel = calls.once(lambda: connect_local(path))
    try:
        yield FrontDoorClient(channel, "the daemon", absent, calls)
    finally:
        calls.once(channel.close)


def is_listening(path: Path) -> bool:
    """Whether a process accepts connections at `path` (a daemon that was killed leaves its socket's file)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(QUICK_S)
        try:
            probe.connect(str(path))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR, errno.ENOTSOCK):
                return False
            raise NotRunningError(
                f"cannot speak to the daemon at {path}: {error.strerror or error}"
            ) from None
    return True


def _envelope(document: Document) -> Envelope:
    return Envelope(body=document.pack())
