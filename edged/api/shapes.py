"""How answers look on the wire: chat completions and plain ones, whole and in chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

from edged.serving.generation import Usage

Json = dict[str, Any]


class Shape(Protocol):
    """Builds the JSON of one answer; all of its pieces share an id and a time."""

    prompt: str  # what this route calls its prompt
    model: str  # its name; empty until it is known, where the client names none and none is loaded

    def whole(self, choices: Sequence[tuple[str, str]], usage: Json) -> Json:
        """choices: text and finish_reason of each."""
        ...

    def opening(self, index: int) -> Json | None:
        """The chunk before the first text, if there is one."""
        ...

    def piece(self, index: int, text: str) -> Json: ...
    def closing(self, index: int, finish_reason: str) -> Json: ...
    def usage(self, usage: Json) -> Json | None:
        """The last chunk, where the client asked for it."""
        ...


class _Answer:
    def __init__(self, prefix: str, model: str, include_usage: bool) -> None:
        self._id = f"{prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self.model = model
        self._include_usage = include_usage

    def _envelope(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self.model,
            "choices": choices,
        }

    def _chunk(self, kind: str, choices: list[Json]) -> Json:
        chunk = self._envelope(kind, choices)
        if self._include_usage:
            chunk["usage"] = None  # OpenAI's: null in all chunks but the last
        return chunk

    def _last(self, kind: str, usage: Json) -> Json | None:
        return {**self._envelope(kind, []), "usage": usage} if self._include_usage else None


class ChatShape(_Answer):
    prompt = "messages"

    def __init__(self, model: str, include_usage: bool = False) -> None:
        super().__init__("chatcmpl", model, include_usage)

    def whole(self, choices: Sequence[tuple[str, str]], usage: Json) -> Json:
        listed = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": reason,
            }
            for index, (text, reason) in enumerate(choices)
        ]
        return {**self._envelope("chat.completion", listed), "usage": usage}

    def opening(self, index: int) -> Json | None:
        return self._delta(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, text: str) -> Json:
        return self._delta(index, {"content": text})

    def closing(self, index: int, finish_reason: str) -> Json:
        return self._delta(index, {}, finish_reason)

    def usage(self, usage: Json) -> Json | None:
        return self._last("chat.completion.chunk", usage)

    def _delta(self, index: int, delta: Json, finish_reason: str | None = None) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._chunk("chat.completion.chunk", [choice])


class TextShape(_Answer):
    prompt = "prompt"

    def __init__(self, model: str, include_usage: bool = False) -> None:
        super().__init__("cmpl", model, include_usage)

    def whole(self, choices: Sequence[tuple[str, str]], usage: Json) -> Json:
        listed = [_choice(index, text, reason) for index, (text, reason) in enumerate(choices)]
        return {**self._envelope("text_completion", listed), "usage": usage}

    def opening(self, index: int) -> Json | None:  # noqa: ARG002 - plain completions begin with their text
        return None

    def piece(self, index: int, text: str) -> Json:
        return self._chunk("text_completion", [_choice(index, text, None)])

    def closing(self, index: int, finish_reason: str) -> Json:
        return self._chunk("text_completion", [_choice(index, "", finish_reason)])

    def usage(self, usage: Json) -> Json | None:
        return self._last("text_completion", usage)


def _choice(index: int, text: str, finish_reason: str | None) -> Json:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}


def total(usages: Sequence[Usage], per_prompt: int) -> Json:
    """OpenAI's usage object; a prompt that several choices share counts once.

    usages: in the order of the choices, `per_prompt` choices to a prompt.
    """
    firsts = usages[::per_prompt]
    prompt = sum(usage.prompt_tokens for usage in firsts)
    completion = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in firsts)},
    }
