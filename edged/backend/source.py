"""Where a window's bytes come from: a GGUF that exists only as a header and a list of file ranges."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Segment:
    """`length` bytes at `offset` of the composed GGUF; zeros where `path` is None."""

    offset: int
    length: int
    path: Path | None
    file_offset: int = 0


@dataclass(frozen=True, slots=True)
class EmbeddingTable:
    """The token embedding on disk, from which single rows are read (never loaded whole)."""

    path: Path
    file_offset: int
    ggml_type: int
    n_embd: int
    n_vocab: int


@dataclass(frozen=True, slots=True)
class WindowSource:
    """A window of layers [first, last) as libllama will see it: a valid GGUF, layers counted from 0.

    header:    the GGUF's bytes up to its data section.
    segments:  the data section, ascending and without overlap; what they leave out reads as zeros.
    embedding: for a window that begins the model and is fed embedding rows; None where libllama is
               given the tokens themselves (a whole model) or hidden states.
    n_vocab:   the model's, also where the window has only a dummy vocabulary.
    capture:   the graph tensor that holds the state after the last layer; None where the window ends
               the model and yields logits.
    """

    first: int
    last: int
    n_embd: int
    n_vocab: int
    header: bytes
    segments: tuple[Segment, ...]
    embedding: EmbeddingTable | None
    capture: str | None

    @property
    def size(self) -> int:
        end = max((segment.offset + segment.length for segment in self.segments), default=0)
        return max(end, len(self.header))
