"""Who may ask: with an API key, whoever has it; without one, programs of this machine, but no web page.

Without a key the server listens on loopback only, where a page in the user's browser could reach it too:
by a request across origins, or by a name of its own that it lets point to 127.0.0.1. The first shows in the
headers Origin and Sec-Fetch-Site, the second in Host.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from edged.api.error_format import ApiError

OPEN_PATHS = frozenset({"/health"})
Check = Callable[[Scope], None]


class Access:
    """ASGI middleware; answers 401 or 403 itself."""

    def __init__(self, app: ASGIApp, api_key: str | None) -> None:
        self._app = app
        self._check: Check = _same_machine if api_key is None else _has_key(api_key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(scope)
            except ApiError as error:
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _has_key(api_key: str) -> Check:
    expected = api_key.encode()

    def check(scope: Scope) -> None:
        if scope["path"] in OPEN_PATHS:
            return
        given = Headers(scope=scope).get("authorization", "")
        scheme, _, key = given.partition(" ")
        # As the bytes that came (headers are decoded as latin-1), in a time that says nothing of the key.
        right = hmac.compare_digest(key.strip().encode("latin-1"), expected)
        if not (right and scheme.lower() == "bearer"):
            what = "wrong API key" if given else "no API key: send the header Authorization: Bearer KEY"
            headers = {"www-authenticate": "Bearer"}
            raise ApiError(401, what, code="invalid_api_key", headers=headers)

    return check


def _same_machine(scope: Scope) -> None:
    headers = Headers(scope=scope)
    host = headers.get("host")  # programs may leave it out (HTTP/1.0), browsers cannot
    if host is not None and not _is_loopback(_host_name(host)):
        message = f"not served under the name '{host}'; use localhost or 127.0.0.1"
        raise ApiError(403, message, code="host_not_allowed")
    origin = headers.get("origin")
    foreign = origin is not None and origin.lower() != f"{scope['scheme']}://{host}".lower()
    site = headers.get("sec-fetch-site", "none")
    safe = scope["method"] in ("GET", "HEAD")
    if foreign or (site not in ("none", "same-origin") and not safe):
        message = "web pages of another origin may not use this server without an API key"
        raise ApiError(403, message, code="origin_not_allowed")


def _host_name(host: str) -> str:
    """The name or address in a Host header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_loopback(name: str) -> bool:
    if name.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
