"""The body of POST /v1/completions, and what it asks of the head."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import PlainValidator, ValidationInfo, field_validator

from edged.api.sampling_fields import MAX_CHOICES, SamplingFields, Unsupported, refusal, unsupported
from edged.serving.generation import GenerateRequest

DEFAULT_MAX_TOKENS = 16  # OpenAI's, for this route
Prompt = str | tuple[int, ...]


def _prompts(value: Any) -> tuple[Prompt, ...]:
    """A string, a list of strings, a list of token ids, or a list of such lists, as a tuple of prompts."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise refusal("prompt_type", "must be a string, token ids, or a list of either, not empty")
    if _is_token(value[0]):
        return (_tokens(value),)
    return tuple(prompt if isinstance(prompt, str) else _tokens(prompt) for prompt in value)


def _tokens(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or not all(_is_token(token) for token in value):
        raise refusal("prompt_type", "must be a string, token ids, or a list of either, not empty")
    return tuple(value)


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


class CompletionRequest(SamplingFields):
    prompt: Annotated[tuple[Prompt, ...], PlainValidator(_prompts)]
    best_of: int | None = None
    echo: Annotated[bool | None, Unsupported] = None
    suffix: Annotated[str | None, Unsupported] = None
    logprobs: int | bool | None = None

    @field_validator("logprobs")
    @classmethod
    def _no_logprobs(cls, value: int | bool | None) -> int | bool | None:
        if value is not None and value is not False:  # 0 asks for those of the chosen tokens
            raise unsupported("not supported")
        return value

    @field_validator("best_of")
    @classmethod
    def _as_many_as_asked(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and value != (info.data.get("n") or 1):
            raise unsupported("best_of must equal n")
        return value

    @field_validator("prompt")
    @classmethod
    def _not_too_many(cls, value: tuple[Prompt, ...], info: ValidationInfo) -> tuple[Prompt, ...]:
        if len(value) * (info.data.get("n") or 1) > MAX_CHOICES:
            raise refusal("too_many", f"at most {MAX_CHOICES} completions in one request")
        return value

    def requests(self) -> list[GenerateRequest]:
        """One per choice, those of the first prompt first. Raises ValidationError naming the parameter."""
        limit = self.max_tokens if "max_tokens" in self.model_fields_set else DEFAULT_MAX_TOKENS
        return [
            GenerateRequest(
                model=self.model or None,
                prompt=prompt,
                sampling=self.sampling(choice),
                max_tokens=limit,
                stop=self.stops,
            )
            for prompt in self.prompt
            for choice in range(self.n or 1)
        ]
