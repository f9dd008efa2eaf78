"""OpenAI's routes: chat completions, plain completions, models."""

from __future__ import annotations

import asyncio

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edged.api.answer import Answer
from edged.api.chat_request import ChatRequest
from edged.api.completion_request import CompletionRequest
from edged.api.context import ApiContext, context_of
from edged.api.error_format import RETRY_LATER_S, SERVER, ApiError, from_validation
from edged.api.request_body import read_body
from edged.api.shapes import ChatShape, Json, Shape, TextShape
from edged.rpc.messages import ModelSummary, StatusAnswer


async def chat_completions(request: Request) -> Response:
    context = context_of(request)
    body = await read_body(request, ChatRequest, context.limits.body_bytes)
    return await _answer(context, body, ChatShape)


async def completions(request: Request) -> Response:
    context = context_of(request)
    body = await read_body(request, CompletionRequest, context.limits.body_bytes)
    return await _answer(context, body, TextShape)


async def models(request: Request) -> Response:
    listed = await _models(context_of(request))
    return JSONResponse({"object": "list", "data": listed})


async def model(request: Request) -> Response:
    name = request.path_params["name"]
    for entry in await _models(context_of(request)):
        if entry["id"] == name:
            return JSONResponse(entry)
    raise ApiError(404, f"the model '{name}' does not exist", param="model", code="model_not_found")


async def _answer(
    context: ApiContext, body: ChatRequest | CompletionRequest, shape: type[ChatShape] | type[TextShape]
) -> Response:
    try:
        requests = body.requests()
    except ValidationError as error:
        raise from_validation(error) from None
    status = await asyncio.to_thread(context.daemon.status)
    _check_ring(status)
    form: Shape = shape(body.model or status.model, body.include_usage)
    return Answer(context, form, requests, per_prompt=body.n or 1, stream=bool(body.stream))


def _check_ring(status: StatusAnswer) -> None:
    """Refuse while the first ring is being made.

    While one ring gives way to the next, requests wait in the head. In the other states it is the head's
    matter: it may load the model for the request, or say why it cannot.
    """
    if status.plan is None and status.state in ("planning", "loading"):
        message = f"{status.model or 'the model'} is being loaded; try again in a moment"
        headers = {"retry-after": str(RETRY_LATER_S)}
        raise ApiError(503, message, kind=SERVER, code="not_ready", headers=headers)


async def _models(context: ApiContext) -> list[Json]:
    """The loaded one first: clients that choose for themselves take the first."""
    answer, status = await asyncio.to_thread(lambda: (context.daemon.models(), context.daemon.status()))
    ordered = sorted(answer.models, key=lambda model: (not model.loaded, model.name))
    return [_entry(model, status) for model in ordered]


def _entry(model: ModelSummary, status: StatusAnswer) -> Json:
    loaded = model.loaded and status.plan is not None
    context_length = status.plan.context.n_ctx if loaded and status.plan else model.n_ctx_train
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "edged",
        "context_length": context_length,  # not in OpenAI's answer, but in that of many servers
        "loaded": model.loaded,
    }
