"""The outermost layer: gives every request an id, counts its answer, and lets no exception through."""

from __future__ import annotations

import re
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edged.api.error_format import as_api_error
from edged.api.metrics import Metrics

CLIENT_GONE = 499  # nginx's number for a client that left before its answer; only metrics show it


class Observe:
    """ASGI middleware. routes: the paths that metrics tell apart; all others are one."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: frozenset[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Some clients join "/v1/" and "/models" with two slashes.
        scope["path"] = re.sub(r"/{2,}", "/", scope["path"]).rstrip("/") or "/"
        status = CLIENT_GONE
        request_id = uuid.uuid4().hex.encode()

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id),
                    (b"x-content-type-options", b"nosniff"),
                ]
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, receive, counted)
        except Exception as error:  # noqa: BLE001 - the last stop before uvicorn, which would print a trace
            answer = as_api_error(error).response()
            if status != CLIENT_GONE:
                raise ConnectionAbortedError("the answer broke off") from None
            await answer(scope, receive, counted)
        finally:
            self._metrics.answered(self._label(scope["path"]), status)

    def _label(self, path: str) -> str:
        if path in self._routes:
            return path
        return "/v1/models/{name}" if path.startswith("/v1/models/") else "other"
