"""What the planner knows of a model: bytes, types and operations, layer by layer."""

from __future__ import annotations

from functools import cached_property
from typing import Self

from pydantic import Field, model_validator

from edged.documents import Document
from edged.planning.streamed import SLOTS


class TensorGroup(Document):
    """The weights of one ggml type in a layer (or on the output side), experts apart from the rest."""

    type: str  # ggml's name, such as "q4_K"; "": not known
    nbytes: int = Field(ge=0)
    weights: int = Field(ge=0)  # how many
    share: float = Field(default=1.0, gt=0, le=1)  # touched by one token: of experts, active by all

    def touched(self, n_tokens: int) -> float:
        """Bytes read for a batch: each token chooses its experts, here as if by lot."""
        return self.nbytes if self.share == 1.0 else self.nbytes * (1.0 - (1.0 - self.share) ** n_tokens)

    @property
    def flops(self) -> float:
        """Operations per token: a multiplication and an addition per weight."""
        return 2.0 * self.weights * self.share


class LayerProfile(Document):
    """One layer. Layers that are alike should be one and the same value."""

    groups: tuple[TensorGroup, ...]
    kv_bytes_per_token: int = Field(ge=0)  # K and V, at two bytes per value; 0 where it keeps none
    largest_tensor: int = Field(default=0, ge=0)  # bytes, what is read from disk at once; 0: not known

    @cached_property
    def nbytes(self) -> int:
        return sum(group.nbytes for group in self.groups)

    @cached_property
    def flops(self) -> float:
        return sum(group.flops for group in self.groups)


class Fillers(Document):
    """Layers of zeros that a window is loaded with to be computed as in the whole model."""

    first: int = Field(ge=0)  # the window's layers [first, last)
    last: int = Field(ge=1)
    before: tuple[int, ...]  # numbers of layers like these: they take memory and time
    after: tuple[int, ...]  # they take memory only


class ModelProfile(Document):
    """One model as the planner sees it."""

    model: str  # Manifest.id
    n_layers: int = Field(ge=1)
    n_embd: int = Field(ge=1)
    n_vocab: int = Field(ge=1)
    n_heads: int = Field(ge=1)  # of attention, the most that any layer has
    boundaries: tuple[int, ...]  # layers at which it may be cut; () runs whole only
    whole_because: str = ""  # why there are none, for a person
    layer_bytes: tuple[int, ...]  # weights per layer
    embedding_bytes: int
    output_bytes: int  # what the last window loads besides its layers
    kv_bytes_per_token_layer: int  # both K and V, at two bytes per value
    n_ctx_train: int
    name: str = ""
    layers: tuple[LayerProfile, ...] = ()  # (): nothing is known but `layer_bytes`
    output: tuple[TensorGroup, ...] = ()  # of the output side; (): nothing but `output_bytes`
    preferred: tuple[int, ...] = ()  # boundaries at which a cut costs nothing; (): all of them
    fillers: tuple[Fillers, ...] = ()  # of the windows between `boundaries` that need some
    state_width: int = Field(default=0, ge=0)  # values per token between two layers; 0: n_embd
    recurrent: bool = False  # has state that cannot be rolled back
    can_stream_output: bool = False  # the last window can read its output matrix anew for every token
    streams_output: bool = False  # and is to do so

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if len(self.layer_bytes) != self.n_layers:
            raise ValueError(f"{self.n_layers} layers, but the bytes of {len(self.layer_bytes)}")
        if self.layers and tuple(layer.nbytes for layer in self.layers) != self.layer_bytes:
            raise ValueError("the layers' bytes differ from their tensors'")
        if self.output and sum(group.nbytes for group in self.output) != self.output_bytes:
            raise ValueError("the output side's bytes differ from its tensors'")
        if not set(self.preferred) <= set(self.boundaries):
            raise ValueError("a preferred boundary is none")
        return self

    @property
    def total_bytes(self) -> int:
        return sum(self.layer_bytes) + self.output_bytes

    @property
    def output_slots(self) -> int:
        """Bytes of memory that an output matrix takes which is streamed: it comes in slices."""
        largest = max(layer.largest_tensor or layer.nbytes for layer in self.known_layers)
        return min(self.output_bytes, SLOTS * largest)

    @property
    def output_memory(self) -> int:
        """Bytes of memory that the output side takes on a CPU."""
        return self.output_slots if self.streams_output else self.output_bytes

    def streaming_output(self) -> Self:
        return self.model_copy(update={"streams_output": True})

    @property
    def state_bytes(self) -> int:
        """Of one token's activations between two layers, at four bytes per value."""
        return 4 * (self.state_width or self.n_embd)

    @cached_property
    def known_layers(self) -> tuple[LayerProfile, ...]:
        """`layers`; where they are not known, as if of one type of 4.5 bits a weight, all of them active."""
        if self.layers:
            return self.layers
        alike: dict[int, LayerProfile] = {}
        for nbytes in self.layer_bytes:
            if nbytes not in alike:
                alike[nbytes] = LayerProfile(
                    groups=(_of_unknown_type(nbytes),), kv_bytes_per_token=self.kv_bytes_per_token_layer
                )
        return tuple(alike[nbytes] for nbytes in self.layer_bytes)

    @cached_property
    def known_output(self) -> tuple[TensorGroup, ...]:
        return self.output or (_of_unknown_type(self.output_bytes),)


def _of_unknown_type(nbytes: int) -> TensorGroup:
    return TensorGroup(type="", nbytes=nbytes, weights=nbytes * 8 * 2 // 9)
