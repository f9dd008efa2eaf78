"""What a front door asks of the head, and what it gets back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Literal, Protocol

from pydantic import Field

from edged.documents import Document

FinishReason = Literal["stop", "length", "cancelled"]


class Sampling(Document):
    """Sampler settings; the samplers themselves are llama.cpp's. temperature 0 is greedy."""

    temperature: float = Field(default=0.8, ge=0.0, le=100.0)
    top_k: int = Field(default=40, ge=0)  # 0: off
    top_p: float = Field(default=0.95, gt=0.0, le=1.0)  # 1: off
    min_p: float = Field(default=0.05, ge=0.0, le=1.0)  # 0: off
    repeat_penalty: float = Field(default=1.0, gt=0.0, le=10.0)  # 1: off
    frequency_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    presence_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    penalty_last_n: int = Field(default=64, ge=-1)  # tokens looked back on; -1: all
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    logit_bias: dict[int, float] = Field(default_factory=dict)  # token id -> addend


class Message(Document):
    role: str
    content: str


class GenerateRequest(Document):
    """One completion. Exactly one of `messages` (chat template applied) and `prompt` (raw) is given."""

    model: str | None = None  # None: the model that is loaded
    messages: tuple[Message, ...] | None = None
    prompt: str | tuple[int, ...] | None = None  # text or token ids
    sampling: Sampling = Sampling()
    max_tokens: int | None = Field(default=None, ge=1)  # None: to the end of the context
    stop: tuple[str, ...] = Field(default=(), max_length=16)
    ignore_eos: bool = False


class Usage(Document):
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # of the prompt, taken from an earlier request's KV
    prefill_ms: float = 0.0
    decode_ms: float = 0.0


class GenerateEvent(Document):
    """A piece of text (whole characters only), or the end: then `finish_reason` and `usage` are set."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


class Generation(Protocol):
    """A running request. Iterate it one way or the other, once; errors are raised while iterating."""

    def __iter__(self) -> Iterator[GenerateEvent]: ...
    def __aiter__(self) -> AsyncIterator[GenerateEvent]: ...
    def cancel(self) -> None:
        """The client went away: the sequence's KV is free at once. Idempotent, from any thread."""
        ...


class Generator(Protocol):
    """What every front door talks to: the engine on the head, or a stand-in that forwards to the head."""

    def generate(self, request: GenerateRequest) -> Generation:
        """Raises RequestError or ModelError if the request cannot even be queued."""
        ...
