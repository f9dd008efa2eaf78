"""What is not OpenAI's: health, metrics, and a word to whoever opens the root in a browser."""

from __future__ import annotations

import asyncio

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from edged.api.context import context_of


async def root(request: Request) -> Response:
    status = await asyncio.to_thread(context_of(request).daemon.status)
    return PlainTextResponse(
        f"edged {status.version}: the machines of one home hold one language model together.\n"
        f"Model: {status.model or 'none'} ({status.state})\n"
        f"OpenAI-compatible clients: base URL {request.base_url}v1\n"
        "Also here: /health, /metrics\n"
    )


async def health(request: Request) -> Response:
    """200 while requests are answered, 503 otherwise. Open to all, so it names no device."""
    status = await asyncio.to_thread(context_of(request).daemon.status)
    ready = status.state == "ready"
    body = {
        "status": "ok" if ready else "unavailable",
        "state": status.state,
        "model": status.model or None,
        "epoch": status.plan.epoch if status.plan else None,
        "hops": len(status.plan.hops) if status.plan else 0,
        "members_alive": sum(member.state == "alive" for member in status.members),
    }
    return JSONResponse(body, 200 if ready else 503)


async def metrics(request: Request) -> Response:
    body = await asyncio.to_thread(context_of(request).metrics.text)
    return Response(body, media_type=CONTENT_TYPE_LATEST)
