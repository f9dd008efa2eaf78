"""The body of POST /v1/chat/completions, and what it asks of the head."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationInfo, field_validator

from edged.api.sampling_fields import SamplingFields, TokenLimit, Unsupported, refusal, unsupported
from edged.serving.generation import GenerateRequest, Message


def _text(value: Any) -> str:
    """Content as one string: given as such, null, or as a list of text parts."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise refusal("content_type", "must be a string or a list of text parts")
    return "\n".join(_part(part) for part in value)


def _part(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("image_url", "input_image", "image", "input_audio", "file", "video_url"):
        raise unsupported(f"only text can be read here, not '{kind}'")
    text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, dict) else part
    if kind not in ("text", "refusal", None) or not isinstance(text, str):
        raise refusal("content_type", 'a part must be {"type": "text", "text": ...}')
    return text


class ChatMessage(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, PlainValidator(_text)] = ""
    tool_calls: Any = None
    function_call: Any = None

    @field_validator("tool_calls", "function_call")
    @classmethod
    def _no_calls(cls, value: Any) -> Any:
        if value:
            raise unsupported("messages with tool calls are not supported")
        return value

    def message(self) -> Message:
        # Templates know "system"; "developer" is OpenAI's later name for it.
        return Message(role="system" if self.role == "developer" else self.role, content=self.content)


class ChatRequest(SamplingFields):
    messages: tuple[ChatMessage, ...] = Field(min_length=1)
    max_completion_tokens: TokenLimit = None
    tool_choice: Any = None
    tools: tuple[Any, ...] | None = None
    function_call: Any = None
    functions: tuple[Any, ...] | None = None
    response_format: Any = None
    logprobs: Annotated[bool | None, Unsupported] = None
    top_logprobs: Annotated[int | None, Unsupported] = None
    modalities: tuple[Any, ...] | None = None
    audio: Annotated[Any, Unsupported] = None

    @field_validator("tool_choice", "function_call")
    @classmethod
    def _no_forced_tool(cls, value: Any) -> Any:
        if value not in (None, "none", "auto"):
            raise unsupported("tools are not supported")
        return value

    @field_validator("tools", "functions")
    @classmethod
    def _no_tools(cls, value: tuple[Any, ...] | None, info: ValidationInfo) -> tuple[Any, ...] | None:
        choice = info.data.get("tool_choice" if info.field_name == "tools" else "function_call")
        if value and choice != "none":
            raise unsupported("tools are not supported; leave them out, or set the choice to none")
        return value

    @field_validator("response_format")
    @classmethod
    def _only_free_text(cls, value: Any) -> Any:
        if value is not None and not (isinstance(value, dict) and value.get("type") == "text"):
            raise unsupported('only {"type": "text"} is supported')
        return value

    @field_validator("modalities")
    @classmethod
    def _only_text(cls, value: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if value not in (None, (), ("text",)):
            raise unsupported('only ["text"] is supported')
        return value

    def requests(self) -> list[GenerateRequest]:
        """One per choice. Raises ValidationError that names the parameter."""
        newer = "max_completion_tokens" in self.model_fields_set
        limit = self.max_completion_tokens if newer else self.max_tokens
        messages = tuple(message.message() for message in self.messages)
        return [
            GenerateRequest(
                model=self.model or None,
                messages=messages,
                sampling=self.sampling(choice),
                max_tokens=limit,
                stop=self.stops,
            )
            for choice in range(self.n or 1)
        ]
