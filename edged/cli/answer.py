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

    from edged.rpc.front_door import FrontDoorClient
    from edged.serving.generation import FinishReason, GenerateRequest, Generation, Usage


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    finish_reason: FinishReason | None
    usage: Usage | None
    first_text_s: float | None  # from asking to the first piece of text

    @property
    def ms_per_token(self) -> float | None:
        """Of decoding; the first token is the prefill's."""
        if self.usage is None or self.usage.completion_tokens < 2:
            return None
        return self.usage.decode_ms / (self.usage.completion_tokens - 1)


def stream(client: FrontDoorClient, request: GenerateRequest, write: Callable[[str], None]) -> Answer:
    """Hand each piece of the answer to `write`. Ctrl-C ends the answer as `cancelled`."""
    pieces: list[str] = []
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    first_text_s: float | None = None
    begun = time.monotonic()
    generation = client.generate(request)
    with _cancelled_by_interrupt(generation):
        for event in generation:
            if event.text:
                first_text_s = time.monotonic() - begun if first_text_s is None else first_text_s
                pieces.append(event.text)
                write(event.text)
            finish_reason = event.finish_reason or finish_reason
            usage = event.usage or usage
    return Answer("".join(pieces), finish_reason, usage, first_text_s)


@contextmanager
def _cancelled_by_interrupt(generation: Generation) -> Iterator[None]:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        generation.cancel()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
