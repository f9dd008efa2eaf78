"""Errors as OpenAI's clients expect them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from starlette.responses import Response

from edged.errors import EdgedError

logger = logging.getLogger(__name__)

RETRY_SOON_S = 1  # a place in the queue
RETRY_LATER_S = 5  # a ring

INVALID = "invalid_request_error"
SERVER = "server_error"


@dataclass(frozen=True, slots=True)
class Kind:
    status: int
    type: str
    retry_after_s: int | None = None


_REFUSED = Kind(400, INVALID)
_BROKEN = Kind(500, SERVER)
_NOT_NOW = Kind(503, SERVER, RETRY_LATER_S)

KINDS: Mapping[str, Kind] = {
    "edged_error": _BROKEN,
    "bad_settings": _BROKEN,
    "bad_document": _BROKEN,
    "daemon_error": _BROKEN,
    "already_running": _BROKEN,
    "not_running": _NOT_NOW,
    "port_taken": _BROKEN,
    "model_error": _NOT_NOW,
    "broken_model": _BROKEN,
    "unsupported_model": _REFUSED,
    "model_not_found": Kind(404, INVALID),
    "store_error": _BROKEN,
    "damaged_part": _BROKEN,
    "missing_part": _NOT_NOW,
    "disk_full": _BROKEN,
    "cluster_error": _NOT_NOW,
    "join_refused": _BROKEN,
    "untrusted_peer": _BROKEN,
    "version_mismatch": _BROKEN,
    "peer_lost": _NOT_NOW,
    "no_plan": _NOT_NOW,
    "ring_error": _NOT_NOW,
    "misconduct": _NOT_NOW,
    "bad_frame": _BROKEN,
    "ring_broken": _NOT_NOW,
    "stalled": _NOT_NOW,
    "window_error": _BROKEN,
    "request_error": _REFUSED,
    "context_length_exceeded": _REFUSED,
    "invalid_request": _REFUSED,
    "overloaded": Kind(429, "rate_limit_error", RETRY_SOON_S),
}
"""HTTP status and OpenAI's type per `EdgedError.code`; a test holds it against the tree of errors."""


class ApiError(Exception):
    """An error with its HTTP status, ready to be written."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def body(self) -> bytes:
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return json_bytes({"error": error})

    def response(self) -> Response:
        return Response(self.body, self.status, self.headers, media_type="application/json")


def as_api_error(error: Exception, prompt: str = "messages") -> ApiError:
    """Whatever was raised, as an ApiError; what is not an EdgedError goes to the log alone.

    prompt: what the route calls the parameter that a context overflow is blamed on.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValidationError):
        return from_validation(error)
    if not isinstance(error, EdgedError):
        logger.error("internal error: %s: %s", type(error).__name__, error)
        logger.debug("its trace:", exc_info=error)
        return ApiError(500, "internal error; the daemon's log says more", kind=SERVER, code="internal_error")
    kind = KINDS.get(error.code, _BROKEN)
    param = {"model_not_found": "model", "context_length_exceeded": prompt}.get(error.code)
    headers = {} if kind.retry_after_s is None else {"retry-after": str(kind.retry_after_s)}
    return ApiError(kind.status, error.message, kind=kind.type, param=param, code=error.code, headers=headers)


def from_validation(error: ValidationError) -> ApiError:
    """The first thing wrong with a request, by the name that the client used."""
    first = error.errors(include_url=False, include_input=False)[0]
    kind, message = first["type"], first["msg"]
    param = dotted(first["loc"])
    if kind == "json_invalid":
        return ApiError(400, f"the body is not JSON: {message}", code="invalid_json")
    if param is None:
        return ApiError(400, "the body must be a JSON object", code="invalid_type")
    if kind == "missing":
        return ApiError(400, f"'{param}' is missing", param=param, code="missing_required_parameter")
    if kind.startswith("unsupported"):
        return ApiError(400, f"'{param}': {message}", param=param, code=kind)
    code = "invalid_type" if kind.endswith(("_type", "_parsing")) else "invalid_value"
    return ApiError(400, f"'{param}': {message}", param=param, code=code)


def dotted(steps: Sequence[int | str]) -> str | None:
    """`("messages", 0, "content")` as `messages[0].content`; None for the whole body."""
    name = ""
    for step in steps:
        if isinstance(step, int):
            name += f"[{step}]"
        elif step != "[key]":  # pydantic's mark for a key rather than its value
            name += f".{step}" if name else step
    return name or None


def json_bytes(value: Any) -> bytes:
    """Compact UTF-8; a lone surrogate becomes `?` rather than an error."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
