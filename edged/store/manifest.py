"""The manifest: everything about a cut model but its bytes."""

from __future__ import annotations

import hashlib
from functools import cached_property
from itertools import pairwise
from typing import Self

from pydantic import Field, model_validator

from edged.documents import Document
from edged.store.architectures.shape import Shape
from edged.store.soundness import entry_fault, tensor_fault

FORMAT_VERSION = 1
MOST_LAYERS = 512  # libllama's own limit, behind an assertion


class TensorEntry(Document):
    """One tensor inside a part; `offset` counts from the part file's first byte."""

    name: str
    ggml_type: int
    shape: tuple[int, ...]  # GGUF order: the fastest dimension first
    offset: int
    nbytes: int

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        if fault := tensor_fault(self.name, self.ggml_type, self.shape, self.offset, self.nbytes):
            raise ValueError(fault)
        return self


class Part(Document):
    """One content-addressed file of the store: `layer.007`, `embedding`, `output`, `shared` or `vocab`.

    The file is a GGUF of its own whose tensors keep their original names and begin on page boundaries;
    equal content gives equal bytes, hence an equal SHA-256, on every machine.
    """

    name: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)
    tensors: tuple[TensorEntry, ...]

    @model_validator(mode="after")
    def _holds_its_tensors(self) -> Self:
        if any(tensor.offset + tensor.nbytes > self.size for tensor in self.tensors):
            raise ValueError("a part is shorter than its tensors")
        return self

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


class MetadataEntry(Document):
    """One GGUF key-value pair; `element_type` is set for arrays."""

    key: str
    value_type: int
    element_type: int | None = None
    value: bool | int | float | str | bytes | tuple[bool | int | float | str, ...]

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        if fault := entry_fault(self.key, self.value_type, self.element_type, self.value):
            raise ValueError(fault)
        return self


class Manifest(Document):
    """A model cut by layers. `id` is the SHA-256 of its packed form, so it names exactly these weights."""

    format_version: int = FORMAT_VERSION
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,199}$")
    architecture: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    n_layers: int = Field(ge=1, le=MOST_LAYERS)
    n_embd: int = Field(ge=1, lt=2**31)
    n_vocab: int = Field(ge=1, lt=2**31)
    n_ctx_train: int = Field(ge=1, lt=2**31)
    kv_bytes_per_token_layer: int = Field(ge=0, lt=2**40)  # at f16, the largest of all layers
    recurrent: bool = False  # has state that cannot be rolled back
    boundaries: tuple[int, ...]  # layers at which it may be cut; () for a model that runs whole only
    preferred: tuple[int, ...] = ()  # those between which windows cost nothing besides their own layers
    whole_because: str = ""  # why there are no boundaries, for a person
    metadata: tuple[MetadataEntry, ...]  # hyperparameters; the tokenizer is in the part `vocab`
    parts: tuple[Part, ...]

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        names = [part.name for part in self.parts]
        layers = {f"layer.{index:03d}" for index in range(self.n_layers)}
        if len(set(names)) < len(names):
            raise ValueError("a part is named twice")
        if absent := sorted({*layers, "embedding", "vocab"} - set(names)):
            raise ValueError(f"the part {absent[0]} is missing")
        edges = (0, *self.boundaries, self.n_layers)
        if any(one >= other for one, other in pairwise(edges)):
            raise ValueError(f"the boundaries are not ascending within 0 and {self.n_layers}")
        return self

    @cached_property
    def id(self) -> str:
        return hashlib.sha256(self.pack()).hexdigest()

    @cached_property
    def by_name(self) -> dict[str, Part]:
        return {part.name: part for part in self.parts}

    def layer(self, index: int) -> Part:
        return self.by_name[f"layer.{index:03d}"]

    @cached_property
    def tied(self) -> bool:
        """Whether the embedding table is the output matrix as well."""
        output = self.by_name.get("output")
        return output is None or all(tensor.name != "output.weight" for tensor in output.tensors)

    @property
    def output_key(self) -> str:
        """The name of the output matrix as an image; see edged.backend.residency."""
        return self.by_name["embedding" if self.tied else "output"].sha256 + "-output"

    @cached_property
    def shape(self) -> Shape:
        """What the rules of cutting look at."""
        metadata = {entry.key: entry.value for entry in self.metadata if not isinstance(entry.value, bytes)}
        blocks = metadata.get(f"{self.architecture}.block_count")
        return Shape(
            architecture=self.architecture,
            n_layers=self.n_layers,
            n_blocks=blocks if isinstance(blocks, int) else self.n_layers,
            n_embd=self.n_embd,
            n_vocab=self.n_vocab,
            metadata=metadata,
        )

    def whole_only(self, why: str) -> Self:
        """The same model, not to be cut."""
        return self.model_copy(update={"boundaries": (), "preferred": (), "whole_because": why})

    @property
    def vocabulary(self) -> Part:
        """A GGUF with the tokenizer, the chat template and all other metadata, and no tensors."""
        return self.by_name["vocab"]

    def parts_for(self, first: int, last: int) -> tuple[Part, ...]:
        """The parts that the window of layers [first, last) needs.

        The vocabulary is among them only for a whole model, which libllama itself feeds with tokens; the
        head of a ring needs `vocabulary` besides.
        """
        ends = last == self.n_layers
        wanted = [self.layer(index) for index in range(first, last)]
        if first == 0 or (ends and self.tied):
            wanted.append(self.by_name["embedding"])
        if ends and "output" in self.by_name:
            wanted.append(self.by_name["output"])
        if "shared" in self.by_name:
            wanted.append(self.by_name["shared"])
        if first == 0 and ends:
            wanted.append(self.vocabulary)
        return tuple(wanted)
