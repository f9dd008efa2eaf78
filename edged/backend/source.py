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
class Tap:
    """A tensor of the running graph, and its place in a row of the state that windows hand on.

    The tensor is the one called `name` or, where that is empty, the first computed from the weight `source`.
    A tap that writes does so when that tensor has been computed, and writes over it, or over `into`.
    offset: floats before it in the state's row (for the first window's entry: in an embedding row).
    width:  floats per token.
    """

    name: str = ""
    source: str = ""
    into: str = ""
    offset: int = 0
    width: int = 0


@dataclass(frozen=True, slots=True)
class Factor:
    """A factor that libllama derives from the number of layers: `wrong` in the window, `right` in the model.

    name: of the scaling tensor, without the layer's number; empty for any with that factor.
    """

    name: str
    wrong: float
    right: float


@dataclass(frozen=True, slots=True)
class WindowSource:
    """A window of layers [first, last) as libllama will see it: a valid GGUF, layers counted from 0.

    header:    the GGUF's bytes up to its data section.
    segments:  the data section, ascending and without overlap; what they leave out reads as zeros.
    n_vocab:   the model's, also where the window has only a dummy vocabulary.
    width:     floats per token of the state that windows of this model hand on.
    embedding: for a window that begins the model: its rows are what enters. None where libllama looks the
               tokens up itself (a whole model), and for all other windows.
    layer_embedding: of a model with a table of embeddings for its layers: read likewise, and handed on as the
               last columns of the state. The embedding row is then the state's first columns.
    entries:   where the state (or the embedding row) is written into the graph. libllama is fed token 0
               throughout, unless it `reads_tokens`.
    captures:  where the state is read; none where the window ends the model and yields logits. What no
               capture gives is handed on as it came in.
    carries_tokens: the last four columns of the state say the token (a column of 127, three digits to 128).
    """

    first: int
    last: int
    n_embd: int
    n_vocab: int
    width: int
    header: bytes
    segments: tuple[Segment, ...]
    embedding: EmbeddingTable | None = None
    layer_embedding: EmbeddingTable | None = None
    reads_tokens: bool = False
    carries_tokens: bool = False
    entries: tuple[Tap, ...] = ()
    captures: tuple[Tap, ...] = ()
    factors: tuple[Factor, ...] = ()
    fillers: int = 0  # layers of zeros among those that libllama sees

    @property
    def size(self) -> int:
        end = max((segment.offset + segment.length for segment in self.segments), default=0)
        return max(end, len(self.header))
