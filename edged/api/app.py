"""The ASGI application: routes and the layers round them."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from edged.api import openai_routes, state_routes
from edged.api.access import Access
from edged.api.context import ApiContext
from edged.api.daemon_view import DaemonView
from edged.api.error_format import ApiError, as_api_error
from edged.api.limits import HttpLimits
from edged.api.observe import Observe
from edged.errors import EdgedError
from edged.serving.generation import Generator

ROUTES = (
    Route("/", state_routes.root, methods=["GET"]),
    Route("/health", state_routes.health, methods=["GET"]),
    Route("/metrics", state_routes.metrics, methods=["GET"]),
    Route("/v1/models", openai_routes.models, methods=["GET"]),
    Route("/v1/models/{name:path}", openai_routes.model, methods=["GET"]),
    Route("/v1/chat/completions", openai_routes.chat_completions, methods=["POST"]),
    Route("/v1/completions", openai_routes.completions, methods=["POST"]),
)


def create_app(
    generator: Generator, daemon: DaemonView, api_key: str | None, limits: HttpLimits | None = None
) -> Starlette:
    """api_key None: open to programs of this machine; the server must then listen on loopback only.

    `app.state.context` is the ApiContext; setting its `closing` ends all answers.
    """
    context = ApiContext(generator, daemon, limits or HttpLimits())
    app = Starlette(
        routes=ROUTES,
        middleware=[
            Middleware(Observe, metrics=context.metrics, routes=frozenset(route.path for route in ROUTES)),
            Middleware(Access, api_key=api_key),
        ],
        exception_handlers={
            ApiError: _failed,
            EdgedError: _failed,
            HTTPException: _no_route,
            ClientDisconnect: _gone,
        },
    )
    app.router.redirect_slashes = False
    app.state.context = context
    return app


async def _failed(_: Request, error: Exception) -> Response:
    return as_api_error(error).response()


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path}"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message, code = f"{what} is not possible; allowed: {allowed}", "method_not_allowed"
    else:
        message, code = f"nothing is served at {what}", "not_found"
    return ApiError(error.status_code, message, code=code, headers=error.headers).response()


async def _gone(_: Request, __: Exception) -> Response:
    return _Silence()


class _Silence(Response):
    """No answer: the client went away while it was still sending."""

    async def __call__(self, *_: object) -> None:
        return
