"""One request on the engine's thread: logits in, events out."""

from __future__ import annotations

from edged.backend.window import Logits
from edged.errors import EdgedError, WindowError
from edged.serving.detokenizer import Detokenizer
from edged.serving.generation import FinishReason, GenerateEvent, GenerateRequest, Usage
from edged.serving.prompt import Prompt
from edged.serving.sampler import Candidates, Sampler
from edged.serving.sequence import Sequence
from edged.serving.statistics import Recorder
from edged.serving.stream import EventStream
from edged.serving.tokenizer import Tokenizer


class Answer:
    """Samples, detokenizes and emits for one sequence, and keeps its times (seconds of a monotonic clock).

    The sampler outlives a switch of rings, so its random numbers and penalties go on where they were.
    """

    def __init__(
        self, sequence: Sequence, request: GenerateRequest, prompt: Prompt, stream: EventStream, now: float
    ) -> None:
        self.sequence = sequence
        self.stream = stream
        self._request = request
        self._detokenizer = Detokenizer(prompt.stop)
        self._sampler: Sampler | None = None
        self._n_ctx = 0
        self._cached = 0
        self.waiting_since = now  # for a slot or a ring
        self._accepted_at = now
        self._started_at: float | None = None
        self._first_at: float | None = None
        self._latest_at = now

    @property
    def generated(self) -> int:
        return len(self.sequence.tokens) - self.sequence.prompt_length

    def begin(self, n_ctx: int, tokenizer: Tokenizer, candidates: Candidates, now: float) -> None:
        """It has a slot: for the first time, or again on a new ring."""
        self._n_ctx = n_ctx
        if self._sampler is None:
            banned = tokenizer.end_tokens if self._request.ignore_eos else ()
            self._sampler = Sampler(self._request.sampling, candidates, n_ctx, banned)
            self._sampler.accept(self.sequence.tokens)
            self._cached = self.sequence.sent
            self._started_at = now

    def advance(
        self, logits: Logits | None, tokenizer: Tokenizer, recorder: Recorder, now: float
    ) -> FinishReason | None:
        """Take logits (1, n_vocab) of the last token, emit the next; the reason if it is the last one.

        Raises WindowError where the logits make no sense.
        """
        assert self._sampler is not None
        if logits is None or len(logits) != 1:
            raise WindowError("the ring gave no logits for a token that wants them")
        token = self._sampler.sample(logits[0])
        if self._first_at is None:
            self._first_at = now
            recorder.first_token(now - self._accepted_at)
        else:
            recorder.next_token(now - self._latest_at)
        self._latest_at = now
        if not self._request.ignore_eos and tokenizer.is_end(token):
            return "stop"
        self._sampler.accept([token])
        self.sequence.tokens.append(token)
        text = self._detokenizer.push(tokenizer.piece(token))
        self.stream.push(GenerateEvent(text=text, token_ids=(token,)))
        if self._detokenizer.stopped:
            return "stop"
        return "length" if self._is_full() else None

    def _is_full(self) -> bool:
        most = self._request.max_tokens
        return len(self.sequence.tokens) >= self._n_ctx or (most is not None and self.generated >= most)

    def end(self, reason: FinishReason, now: float) -> Usage:
        """Emit what was held back, and the end."""
        started = self._accepted_at if self._started_at is None else self._started_at
        first = now if self._first_at is None else self._first_at
        usage = Usage(
            prompt_tokens=self.sequence.prompt_length,
            completion_tokens=self.generated,
            cached_tokens=self._cached,
            prefill_ms=(first - started) * 1e3,
            decode_ms=(self._latest_at - first) * 1e3 if self._first_at is not None else 0.0,
        )
        self.stream.push(GenerateEvent(text=self._detokenizer.flush(), finish_reason=reason, usage=usage))
        self._free()
        return usage

    def fail(self, error: EdgedError) -> None:
        self.stream.fail(error)
        self._free()

    def _free(self) -> None:
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None
