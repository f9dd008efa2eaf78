"""A conversation to the prompt text the model was trained on, by the chat template in its GGUF."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jinja2
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from edged.errors import InvalidRequestError
from edged.serving.generation import Message
from edged.serving.template_sandbox import BoundedEnvironment, render_within

MAX_TEMPLATE_CHARS = 2**20  # the longest known has 20,000
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
    that starts with `user:`. Thread safe.
    """

    def __init__(self, source: str | None, *, bos_text: str, eos_text: str, adds_bos: bool) -> None:
        """adds_bos: the tokenizer puts the begin token in front itself, so the text must not have it."""
        self._source = source
        self._bos_text = bos_text
        self._eos_text = eos_text
        self._adds_bos = adds_bos
        self._template: jinja2.Template | None = None

    def render(self, messages: Sequence[Message]) -> Rendered:
        """Raises InvalidRequestError with the template's own message where it refuses the conversation."""
        if not messages:
            raise InvalidRequestError("a chat needs at least one message")
        if self._source is None:
            lines = [f"{message.role}: {message.content}\n" for message in messages]
            return Rendered("".join(lines) + "assistant:", stop=("\nuser:",))
        limit = _BASE_OUTPUT_CHARS + _COPIES * sum(len(m.content) + len(m.role) for m in messages)
        text = self._render(self._source, messages, limit)
        if self._adds_bos and self._bos_text:
            text = text.removeprefix(self._bos_text)
        return Rendered(text)

    def _render(self, source: str, messages: Sequence[Message], limit: int) -> str:
        try:
            if self._template is None:
                self._template = _compile(source)
            return render_within(
                limit,
                self._template,
                messages=[{"role": message.role, "content": message.content} for message in messages],
                bos_token=self._bos_text,
                eos_token=self._eos_text,
                add_generation_prompt=True,
                raise_exception=_refuse,
                strftime_now=Jinja2ChatFormatter.strftime_now,
                functions=None,
                function_call=None,
                tools=None,
                tool_choice=None,
            )
        except _RefusedByTemplateError as refusal:
            raise InvalidRequestError(f"the chat template refuses this conversation: {refusal}") from None
        except Exception as error:  # noqa: BLE001 (a template can raise whatever an expression can)
            fault = " ".join(str(error).split()) or type(error).__name__
            raise InvalidRequestError(f"the model's chat template fails: {fault}") from None


def _compile(source: str) -> jinja2.Template:
    if len(source) > MAX_TEMPLATE_CHARS:
        raise InvalidRequestError(f"it has {len(source)} characters, {MAX_TEMPLATE_CHARS} at most")
    environment = BoundedEnvironment(
        loader=jinja2.BaseLoader(),
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Jinja2ChatFormatter.IgnoreGenerationTags, "jinja2.ext.loopcontrols"],
    )
    environment.add_filter("tojson", Jinja2ChatFormatter.tojson)
    return environment.from_string(source)


class _RefusedByTemplateError(Exception):
    """What `raise_exception` in a template raises."""


def _refuse(message: object) -> None:
    raise _RefusedByTemplateError(str(message))
