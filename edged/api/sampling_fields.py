"""The parameters that chat and plain completions share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from edged.serving.generation import Sampling

LEAST_TOP_P = 1e-6  # OpenAI allows 0, and means: only the likeliest token
MAX_CHOICES = 32  # completions of one request


def refusal(code: str, message: str) -> PydanticCustomError:
    """`code` is what the client sees, unless it ends in `_type`: see `error_format.from_validation`."""
    # pydantic reads the message as a template, where braces stand for something else.
    return PydanticCustomError(code, "{why}", {"why": message})


def unsupported(message: str) -> PydanticCustomError:
    return refusal("unsupported_parameter", message)


def _absent(value: Any) -> Any:
    if value:
        raise unsupported("not supported")
    return value


Unsupported = AfterValidator(_absent)
"""For a field that may only say that it is not wanted."""


def _as_list(value: Any) -> Any:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else value


def _limit(value: int | None) -> int | None:
    """-1 is a common way to write: no limit."""
    if value is not None and value < 1 and value != -1:
        raise refusal("bad_limit", "must be at least 1")
    return None if value == -1 else value


TokenLimit = Annotated[int | None, AfterValidator(_limit)]


class StreamOptions(BaseModel):
    include_usage: bool | None = None


class SamplingFields(BaseModel):
    """Ranges are those of `Sampling`, checked when it is made; a field that is null is as good as absent."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repeat_penalty: float | None = None
    repetition_penalty: float | None = None  # the other common name
    seed: int | None = None
    stop: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = ()
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = None
    max_tokens: TokenLimit = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, value: dict[int, float] | None) -> dict[int, float] | None:
        if value and min(value) < 0:
            raise refusal("bad_token", "token ids are not negative")
        return value

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def stops(self) -> tuple[str, ...]:
        """An empty stop string would stop everything: it is left out."""
        return tuple(text for text in self.stop if text)

    def sampling(self, choice: int) -> Sampling:
        """Settings of the `choice`th completion. Raises ValidationError that names the parameter.

        With a seed, every choice has its own, derived from it.
        """
        given = {
            "temperature": self.temperature,
            "top_p": LEAST_TOP_P if self.top_p == 0 else self.top_p,
            "top_k": 0 if self.top_k == -1 else self.top_k,  # -1: off, as some clients write it
            "min_p": self.min_p,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "repeat_penalty": self.repetition_penalty if self.repeat_penalty is None else self.repeat_penalty,
            "seed": None if self.seed is None or self.seed == -1 else (self.seed + choice) % 2**32,
            "logit_bias": self.logit_bias,
        }
        return Sampling(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
