"""One answer as it streams: shown piece by piece, cancelled by Ctrl-C, timed."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

    from edged.frontdoor.client import FrontDoorClient
    from edged.serving.generation import FinishReason, GenerateRequest, Generation, Usage


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    finish_reason: FinishReason | None
    usage: Usage | None  # None for an answer that was stopped
    n_tokens: int
    first_text_s: float | None  # from asking to the first piece of text
    last_text_s: float

    @property
    def ms_per_token(self) -> float | None:
        """Of decoding; the first token is the prefill's. As seen from here if the head did not say."""
        if self.n_tokens < 2 or self.first_text_s is None:
            return None
        whole = (self.last_text_s - self.first_text_s) * 1000 if self.usage is None else self.usage.decode_ms
        return whole / (self.n_tokens - 1)


def stream(client: FrontDoorClient, request: GenerateRequest, write: Callable[[str], None]) -> Answer:
    """Hand each piece of the answer to `write`. Ctrl-C ends the answer as `cancelled`."""
    pieces: list[str] = []
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    n_tokens = 0
    first_text_s: float | None = None
    last_text_s = 0.0
    begun = time.monotonic()
    generation = client.generate(request)
    with _cancelled_by_interrupt(generation):
        for event in generation:
            if event.text:
                last_text_s = time.monotonic() - begun
                first_text_s = last_text_s if first_text_s is None else first_text_s
                pieces.append(event.text)
                write(event.text)
            n_tokens += len(event.token_ids)
            finish_reason = event.finish_reason or finish_reason
            usage = event.usage or usage
    if usage is not None:
        n_tokens = usage.completion_tokens
    return Answer("".join(pieces), finish_reason, usage, n_tokens, first_text_s, last_text_s)


@contextmanager
def _cancelled_by_interrupt(generation: Generation) -> Iterator[None]:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        generation.cancel()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
