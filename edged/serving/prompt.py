"""A request to the tokens that the model is given."""

from __future__ import annotations

from dataclasses import dataclass

from edged.errors import ContextOverflowError, InvalidRequestError
from edged.serving.generation import GenerateRequest
from edged.serving.sampler import check_bias
from edged.serving.template import ChatTemplate
from edged.serving.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, never empty, and the stop strings of request and template together."""

    tokens: list[int]
    stop: tuple[str, ...]


class PromptBuilder:
    """Applies the chat template and the tokenizer of one model. Thread safe."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._template = ChatTemplate(
            tokenizer.chat_template,
            bos_text=tokenizer.bos_text,
            eos_text=tokenizer.eos_text,
            adds_bos=tokenizer.adds_bos,
        )

    def build(self, request: GenerateRequest) -> Prompt:
        """Raises InvalidRequestError for anything the model cannot be asked."""
        if (request.messages is None) == (request.prompt is None):
            raise InvalidRequestError("give either `messages` or `prompt`, not both and not neither")
        if "" in request.stop:
            raise InvalidRequestError("a stop string must not be empty")
        check_bias(request.sampling.logit_bias, self._tokenizer.n_vocab)
        if request.messages is not None:
            rendered = self._template.render(request.messages)
            tokens = self._tokenizer.encode(rendered.text, add_special=True, parse_special=True)
            stop = request.stop + rendered.stop
        else:
            tokens = self._raw(request.prompt or "")
            stop = request.stop
        if not tokens:
            raise InvalidRequestError("the prompt is empty")
        return Prompt(tokens, stop)

    def close(self) -> None:
        """Ends what the chat template is doing; idempotent."""
        self._template.close()

    def _raw(self, prompt: str | tuple[int, ...]) -> list[int]:
        """A raw prompt's special tokens are understood, as llama.cpp's server does."""
        if isinstance(prompt, str):
            return self._tokenizer.encode(prompt, add_special=True, parse_special=True)
        wrong = [token for token in prompt if not 0 <= token < self._tokenizer.n_vocab]
        if wrong:
            raise InvalidRequestError(
                f"token {wrong[0]} is not in the vocabulary of {self._tokenizer.n_vocab} tokens"
            )
        return list(prompt)


def check_fits(n_tokens: int, n_ctx: int) -> None:
    """Raises ContextOverflowError where not even one token could be generated."""
    if n_tokens > n_ctx - 1:
        raise ContextOverflowError(
            f"the prompt has {n_tokens} tokens; with a context of {n_ctx} it may have {n_ctx - 1} at most"
        )
