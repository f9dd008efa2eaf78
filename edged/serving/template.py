"""A conversation to the prompt text the model was trained on, by the chat template in its GGUF."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edged.errors import InvalidRequestError
from edged.serving.generation import Message
from edged.serving.template_process import TemplateProcess

_BASE_OUTPUT_CHARS = 2**20  # what a template may write of its own; the messages come on top
_COPIES = 4  # of every message that a template may put into the prompt


@dataclass(frozen=True, slots=True)
class Rendered:
    """Prompt text, without the begin token that the tokenizer adds, and further stop strings."""

    text: str
    stop: tuple[str, ...] = ()


class ChatTemplate:
    """The template of one model, or the plain fallback where the GGUF has none.

    Fallback: one `role: content` line per message, then `assistant:`; generation stops at the next line
    that starts with `user:`. Thread safe; `close` when done.
    """

    def __init__(self, source: str | None, *, bos_text: str, eos_text: str, adds_bos: bool) -> None:
        """adds_bos: the tokenizer puts the begin token in front itself, so the text must not have it."""
        self._process = None if source is None else TemplateProcess(source)
        self._bos_text = bos_text
        self._eos_text = eos_text
        self._adds_bos = adds_bos

    def render(self, messages: Sequence[Message]) -> Rendered:
        """Raises InvalidRequestError with the template's own message where it refuses the conversation."""
        if not messages:
            raise InvalidRequestError("a chat needs at least one message")
        if self._process is None:
            lines = [f"{message.role}: {message.content}\n" for message in messages]
            return Rendered("".join(lines) + "assistant:", stop=("\nuser:",))
        limit = _BASE_OUTPUT_CHARS + _COPIES * sum(len(m.content) + len(m.role) for m in messages)
        text = self._process.render(
            {
                "messages": [{"role": message.role, "content": message.content} for message in messages],
                "bos_token": self._bos_text,
                "eos_token": self._eos_text,
                "add_generation_prompt": True,
            },
            limit,
        )
        if self._adds_bos and self._bos_text:
            text = text.removeprefix(self._bos_text)
        return Rendered(text)

    def close(self) -> None:
        """Ends a rendering in progress too; idempotent."""
        if self._process is not None:
            self._process.close()


def template_fault(source: str) -> str | None:
    """What is wrong with a template that can never be rendered, in one line."""
    process = TemplateProcess(source)
    try:
        process.check()
    except InvalidRequestError as error:
        return error.message
    finally:
        process.close()
    return None
