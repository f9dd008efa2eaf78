"""A request's body: read up to a limit, parsed, checked."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from edged.api.error_format import ApiError, from_validation

Body = TypeVar("Body", bound=BaseModel)


async def read_body(request: Request, kind: type[Body], limit: int) -> Body:
    """Raises ApiError 413 above `limit` bytes, 400 for what is not a `kind`."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _too_large(limit)
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise from_validation(error) from None


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the request is larger than {limit} bytes", code="request_too_large")
