"""One answer on its way to the client, whole or as server-sent events, for as long as the client listens."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edged.api.completions import Completions, Item
from edged.api.context import ApiContext
from edged.api.error_format import RETRY_LATER_S, SERVER, ApiError, as_api_error, json_bytes
from edged.api.shapes import Json, Shape, total
from edged.serving.generation import GenerateRequest, Usage

DONE = b"data: [DONE]\n\n"
STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # asks reverse proxies to pass each event on
]
PING = b": still working\n\n"  # a comment, which clients skip


class Answer(Response):
    """Runs `requests` (`per_prompt` of them to a prompt) and writes them in `shape`.

    A client that hangs up, streaming or not, cancels them at once.
    """

    def __init__(
        self,
        context: ApiContext,
        shape: Shape,
        requests: Sequence[GenerateRequest],
        *,
        per_prompt: int,
        stream: bool,
    ) -> None:
        super().__init__()
        self._context = context
        self._shape = shape
        self._requests = requests
        self._per_prompt = per_prompt
        self._stream = stream

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        context = self._context
        watch = context.metrics.stopwatch()
        with context.admit(len(self._requests)):
            async with Completions(context.generator, context.threads, self._requests, watch) as completions:
                write = self._write_stream if self._stream else self._write_whole
                writing = asyncio.create_task(write(completions, send), name="answer")
                hangup = asyncio.create_task(_hangup(receive), name="hang-up")
                closing = asyncio.create_task(context.closing.wait(), name="closing")
                try:
                    await asyncio.wait((writing, hangup, closing), return_when=asyncio.FIRST_COMPLETED)
                    if closing.done() and not hangup.done() and not writing.done():
                        completions.fail(_closing())
                        await asyncio.wait((writing, hangup), return_when=asyncio.FIRST_COMPLETED)
                    if not writing.done():
                        context.metrics.hung_up()
                    else:
                        writing.result()  # raises what went wrong before the first byte
                finally:
                    completions.cancel()
                    tasks = (writing, hangup, closing)
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)

    async def _write_whole(self, completions: Completions, send: Send) -> None:
        gathered = _Gathered(len(completions))
        try:
            while gathered.unfinished:
                gathered.add(await completions.next())
        except Exception as error:
            raise as_api_error(error, self._shape.prompt) from error
        await self._name_model()
        usage = total(gathered.usages, self._per_prompt)
        body = json_bytes(self._shape.whole(gathered.choices, usage))
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _write_stream(self, completions: Completions, send: Send) -> None:
        limits = self._context.limits
        gathered = _Gathered(len(completions))
        try:
            item = await _within(limits.headers_s, completions)
        except Exception as error:
            raise as_api_error(error, self._shape.prompt) from error
        await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
        write = _Events(send)
        try:
            while item is None:
                await write.raw(PING)
                item = await _within(limits.ping_s, completions)
            await self._name_model()
            for index in range(len(completions)):
                await write.json(self._shape.opening(index))
            while gathered.unfinished:
                if item is None:
                    await write.raw(PING)
                else:
                    text, reason = gathered.add(item)
                    await write.json(self._shape.piece(item[0], text) if text else None)
                    await write.json(self._shape.closing(item[0], reason) if reason else None)
                if gathered.unfinished:
                    item = await _within(limits.ping_s, completions)
        except Exception as error:  # noqa: BLE001 - the status is long out: the error becomes the last event
            self._context.metrics.broke_off()
            await write.raw(b"data: " + as_api_error(error, self._shape.prompt).body + b"\n\n")
        else:
            await write.json(self._shape.usage(total(gathered.usages, self._per_prompt)))
            await write.raw(DONE)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _name_model(self) -> None:
        """Once there is an answer, some model gave it."""
        if not self._shape.model:
            self._shape.model = (await asyncio.to_thread(self._context.daemon.status)).model


class _Events:
    """Server-sent events, one write each."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def json(self, value: Json | None) -> None:
        if value is not None:
            await self.raw(b"data: " + json_bytes(value) + b"\n\n")

    async def raw(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": True})


class _Gathered:
    """What the completions of a request have said so far."""

    def __init__(self, count: int) -> None:
        self._texts: list[list[str]] = [[] for _ in range(count)]
        self._reasons: list[str] = [""] * count
        self._usages: list[Usage] = [Usage(prompt_tokens=0, completion_tokens=0)] * count
        self.unfinished = count

    @property
    def choices(self) -> list[tuple[str, str]]:
        return [("".join(texts), reason) for texts, reason in zip(self._texts, self._reasons, strict=True)]

    @property
    def usages(self) -> list[Usage]:
        return self._usages

    def add(self, item: Item) -> tuple[str, str]:
        """The event's text and, at the end of a completion, its finish_reason (else empty)."""
        index, event = item
        self._texts[index].append(event.text)
        if event.finish_reason is None:
            return event.text, ""
        if event.finish_reason == "cancelled":  # not by us: who cancels here stops reading
            raise ApiError(503, "the answer was cancelled", kind=SERVER, code="cancelled")
        self._reasons[index] = event.finish_reason
        if event.usage is not None:
            self._usages[index] = event.usage
        self.unfinished -= 1
        return event.text, event.finish_reason


async def _within(seconds: float, completions: Completions) -> Item | None:
    """The next event, or None if there is none for so long."""
    try:
        return await asyncio.wait_for(completions.next(), seconds)
    except TimeoutError:
        return None


async def _hangup(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _closing() -> ApiError:
    headers = {"retry-after": str(RETRY_LATER_S)}
    return ApiError(503, "the daemon is stopping", kind=SERVER, code="stopping", headers=headers)
