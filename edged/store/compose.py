"""Composing a window: a GGUF with layers [first, last) that exists only as a header and ranges of part files.

See `edged.store.architectures` for what differs between architectures. A window that is not the whole model
has no vocabulary. Where it does not end the model, dummies of a few rows stand in for the embedding table and
the output matrix, which libllama insists on and never computes with; where it does, the true matrix is there.
"""

from __future__ import annotations

from dataclasses import dataclass

from edged.backend.source import EmbeddingTable, Segment, Tap, WindowSource
from edged.errors import BrokenModelError, MissingPartError, UnsupportedModelError
from edged.store.architectures.cuts import EMBEDDING
from edged.store.architectures.layout import Layout, Layouts
from edged.store.architectures.metadata import window_pairs
from edged.store.architectures.shape import Shape
from edged.store.architectures.table import LAYER_EMBEDDING_LENGTH, TIED_OUTPUT, Lane, Rule, rule_of
from edged.store.catalogue import Catalogue
from edged.store.ggml_types import layouts as type_layouts
from edged.store.gguf_file import (
    Pair,
    TensorInfo,
    ValueType,
    make_pair,
    read_gguf,
    tensor_bytes,
    write_header,
)
from edged.store.manifest import Manifest, Part, TensorEntry

DUMMY_VOCABULARY = 32  # rows of the stand-ins in a window that neither reads nor yields tokens
TOKEN_COLUMNS = 4  # at the end of a state that carries its token
OUTPUT = "output.weight"
LAYER_EMBEDDING = "per_layer_token_embd.weight"
LAYER_PROJECTION = "per_layer_model_proj.weight"
_BY_TOKEN = (OUTPUT, "output.bias")  # with one row per token
_F32 = 0


@dataclass(frozen=True, slots=True)
class _Piece:
    """One tensor of a window: `origin` is its bytes' place in a part, or None for zeros."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    origin: tuple[Part, TensorEntry] | None
    skipped: int = 0  # bytes of that tensor before this one's


@dataclass(frozen=True, slots=True)
class _Window:
    """A window to be composed."""

    manifest: Manifest
    shape: Shape
    rule: Rule
    layout: Layout
    reads_tokens: bool

    @property
    def has_vocabulary(self) -> bool:
        """Whether it has as many tokens as the model, if only as rows of zeros."""
        return self.ends or self.reads_tokens or not self.rule.dummies

    @property
    def begins(self) -> bool:
        return self.layout.own[0] == 0

    @property
    def ends(self) -> bool:
        return self.layout.own[-1] + 1 == self.manifest.n_layers


def compose(
    manifest: Manifest, catalogue: Catalogue, first: int, last: int, *, fed: bool = False
) -> WindowSource:
    """The window of layers [first, last) of a model whose parts for it are in the store.

    fed: a window of all layers takes rows of the embedding table as input, as other first windows do, so
    that libllama does not need the table.
    Raises UnsupportedModelError where the model may not be cut so, MissingPartError where a part is absent.
    """
    _check(manifest, first, last)
    for part in manifest.parts_for(first, last):
        if catalogue.path(part.sha256).stat().st_size != part.size:
            raise MissingPartError(f"the part {part.name} of {manifest.name} on this device is incomplete")
    shape = manifest.shape
    rule = rule_of(shape)
    if first == 0 and last == manifest.n_layers and not fed:
        return _whole(manifest, shape, rule, catalogue)
    layout = Layouts(shape, rule).window(first, last)
    readers = rule.tokens(shape)
    window = _Window(manifest, shape, rule, layout, reads_tokens=not readers.isdisjoint(layout.own))
    pieces = _layer_pieces(window) + _outside_pieces(window)
    n_vocab = manifest.n_vocab if window.has_vocabulary else DUMMY_VOCABULARY
    pairs = window_pairs(shape, rule, layout.layers, n_vocab, _entries(manifest))
    pairs.append(make_pair("tokenizer.ggml.model", "no_vocab", ValueType.STRING))
    header, segments = _lay_out(catalogue, pairs, pieces)
    carries = any(layer > 0 for layer in readers)
    return WindowSource(
        first=first,
        last=last,
        n_embd=manifest.n_embd,
        n_vocab=manifest.n_vocab,
        width=_width(window) + (TOKEN_COLUMNS if carries else 0),
        header=header,
        segments=segments,
        embedding=_table(manifest, catalogue, EMBEDDING) if first == 0 else None,
        layer_embedding=_table(manifest, catalogue, LAYER_EMBEDDING)
        if first == 0 and rule.layer_embeddings
        else None,
        reads_tokens=window.reads_tokens,
        carries_tokens=carries,
        entries=_entry_taps(window),
        captures=() if window.ends else _capture_taps(window),
        factors=rule.factors(shape, layout.layers),
        fillers=len(layout.layers) - len(layout.own),
    )


def _check(manifest: Manifest, first: int, last: int) -> None:
    if not 0 <= first < last <= manifest.n_layers:
        raise UnsupportedModelError(
            f"{manifest.name} has the layers 0 to {manifest.n_layers}; there is no window [{first}, {last})"
        )
    for boundary in (first, last):
        if boundary not in (0, manifest.n_layers, *manifest.boundaries):
            reason = manifest.whole_because or "its architecture does not allow it"
            raise UnsupportedModelError(f"{manifest.name} cannot be cut at layer {boundary}: {reason}")


def _whole(manifest: Manifest, shape: Shape, rule: Rule, catalogue: Catalogue) -> WindowSource:
    """Everything: all metadata with the tokenizer, all tensors, and libllama takes the tokens itself."""
    pairs = list(read_gguf(catalogue.path(manifest.vocabulary.sha256)).pairs.values())
    if shape.n_blocks > shape.n_layers:
        pairs = window_pairs(shape, rule, tuple(range(shape.n_layers)), shape.n_vocab, pairs)
    pieces = [_of(part, tensor) for part in manifest.parts for tensor in part.tensors]
    header, segments = _lay_out(catalogue, pairs, pieces)
    return WindowSource(
        first=0,
        last=manifest.n_layers,
        n_embd=manifest.n_embd,
        n_vocab=manifest.n_vocab,
        width=manifest.n_embd,
        header=header,
        segments=segments,
        reads_tokens=True,
    )


def _width(window: _Window) -> int:
    """Floats per token of the state, but for its token."""
    lanes = window.manifest.n_embd * sum(lane.width for lane in window.rule.lanes)
    return lanes + window.manifest.n_layers * _layer_columns(window)


def _layer_columns(window: _Window) -> int:
    """Of `per_layer_token_embd`, for each layer."""
    return window.shape.integer(LAYER_EMBEDDING_LENGTH) if window.rule.layer_embeddings else 0


def _entry_taps(window: _Window) -> tuple[Tap, ...]:
    """Where the state enters: the first window's is a row of the embedding table."""
    n_embd = window.manifest.n_embd
    taps = []
    if columns := _layer_columns(window):
        layers = window.layout.layers
        offset = n_embd * sum(lane.width for lane in window.rule.lanes) + layers[0] * columns
        taps.append(Tap(source=LAYER_EMBEDDING, offset=offset, width=len(layers) * columns))
    if window.begins:
        return (Tap(source=EMBEDDING, width=n_embd), *taps)
    for lane, offset in _offsets(window):
        if offset == 0 and window.layout.before:
            where = _leaves(lane, len(window.layout.before) - 1)
        elif lane.only_with and lane.only_with not in _names_outside(window.manifest):
            where = Lane().write
        else:
            where = lane.write
        taps.append(_tap(where, lane.into, offset, lane.width * n_embd))
    return tuple(taps)


def _capture_taps(window: _Window) -> tuple[Tap, ...]:
    last = len(window.layout.before) + len(window.layout.own) - 1
    at_end = not window.layout.after
    return tuple(
        _tap(
            (at_end and lane.read_at_end) or _leaves(lane, last),
            "",
            offset,
            lane.width * window.manifest.n_embd,
        )
        for lane, offset in _offsets(window)
        if window.begins or not lane.first_only
    )


def _leaves(lane: Lane, layer: int) -> str:
    """The tensor that a lane has after the layer of that number among those loaded."""
    return lane.read.format(last=layer, next=layer + 1)


def _names_outside(manifest: Manifest) -> set[str]:
    return {
        tensor.name
        for part in manifest.parts
        if not part.name.startswith("layer.")
        for tensor in part.tensors
    }


def _offsets(window: _Window) -> list[tuple[Lane, int]]:
    found = []
    offset = 0
    for lane in window.rule.lanes:
        found.append((lane, offset))
        offset += lane.width * window.manifest.n_embd
    return found


def _tap(where: str, into: str, offset: int, width: int) -> Tap:
    source = where.removeprefix("<") if where.startswith("<") else ""
    return Tap(name="" if source else where, source=source, into=into, offset=offset, width=width)


def _of(part: Part, tensor: TensorEntry, name: str | None = None) -> _Piece:
    return _Piece(name or tensor.name, tensor.shape, tensor.ggml_type, (part, tensor))


def _zeros(tensor: TensorEntry, name: str | None = None) -> _Piece:
    return _Piece(name or tensor.name, tensor.shape, tensor.ggml_type, None)


def _layer_pieces(window: _Window) -> list[_Piece]:
    pieces = []
    own = set(window.layout.own)
    for at, index in enumerate(window.layout.layers):
        part = window.manifest.layer(index)
        filler = index not in own
        for tensor in part.tensors:
            name = tensor.name.replace(f"blk.{index}.", f"blk.{at}.", 1)
            pieces.append(_zeros(tensor, name) if filler else _of(part, tensor, name))
    return pieces


def _outside_pieces(window: _Window) -> list[_Piece]:
    """The tensors outside the layers: those of the embedding's and output's side only where they count."""
    pieces = []
    parts = window.manifest.by_name
    readers = window.rule.tokens(window.shape)
    unused = window.rule.unused if readers.isdisjoint(window.layout.layers) else ()
    for tensor in parts["shared"].tensors if "shared" in parts else ():
        if tensor.name == LAYER_PROJECTION and window.rule.layer_embeddings:
            pieces.append(_projection(window, parts["shared"], tensor))
        elif tensor.name not in unused:
            pieces.append(_of(parts["shared"], tensor))
    for tensor in parts["embedding"].tensors:
        if tensor.name == LAYER_EMBEDDING:
            columns = len(window.layout.layers) * _layer_columns(window)
            rows = window.manifest.n_vocab if window.has_vocabulary else DUMMY_VOCABULARY
            pieces.append(_unread(LAYER_EMBEDDING, columns, rows))
        elif tensor.name != EMBEDDING:
            pieces.append(_of(parts["embedding"], tensor) if window.begins else _zeros(tensor))
    for tensor in _output_side(window.manifest):
        if tensor.name == OUTPUT:
            continue
        if window.ends:
            pieces.append(_of(parts["output"], tensor))
        elif tensor.name in _BY_TOKEN and not window.has_vocabulary:
            pieces.append(_Piece(tensor.name, (*tensor.shape[:-1], DUMMY_VOCABULARY), _F32, None))
        else:
            pieces.append(_zeros(tensor))
    return [*pieces, *_matrices(window)]


def _projection(window: _Window, part: Part, tensor: TensorEntry) -> _Piece:
    """The rows for the window's layers, which follow one another."""
    layers, columns = window.layout.layers, _layer_columns(window)
    row_bytes = tensor_bytes(tensor.ggml_type, tensor.shape[:1]) or 0
    shape = (tensor.shape[0], len(layers) * columns)
    skipped = layers[0] * columns * row_bytes
    return _Piece(tensor.name, shape, tensor.ggml_type, (part, tensor), skipped)


def _output_side(manifest: Manifest) -> tuple[TensorEntry, ...]:
    return manifest.by_name["output"].tensors if "output" in manifest.by_name else ()


def _matrices(window: _Window) -> list[_Piece]:
    """The embedding table and the output matrix, as far as they are read."""
    manifest = window.manifest
    embedding = _embedding(manifest)
    output = next((one for one in _output_side(manifest) if one.name == OUTPUT), None)
    if not window.ends:
        rows = manifest.n_vocab if window.has_vocabulary else DUMMY_VOCABULARY
        pieces = [_unread(EMBEDDING, manifest.n_embd, rows)]
        if output is not None and not window.rule.dummies:
            pieces.append(_unread(OUTPUT, *output.shape))
        elif output is not None and manifest.architecture not in TIED_OUTPUT:
            pieces.append(_unread(OUTPUT, manifest.n_embd, rows))
        return pieces
    if output is None:
        return [_of(*embedding)]
    if manifest.architecture in TIED_OUTPUT:
        return [_of(manifest.by_name["output"], output, EMBEDDING)]
    return [_of(manifest.by_name["output"], output), _unread(EMBEDDING, manifest.n_embd, manifest.n_vocab)]


def _unread(name: str, n_embd: int, rows: int) -> _Piece:
    """A table of zeros, as high as libllama wants it and in the smallest type that fits."""
    shape = (n_embd, rows)
    weights = {
        number: size
        for number, layout in type_layouts().items()
        if layout.name.startswith(("q", "f")) and layout.name not in ("q8_1", "q8_K")
        if (size := tensor_bytes(number, shape)) is not None
    }
    return _Piece(name, shape, min(weights, key=lambda number: (weights[number], number)), None)


def _embedding(manifest: Manifest) -> tuple[Part, TensorEntry]:
    part = manifest.by_name["embedding"]
    for tensor in part.tensors:
        if tensor.name == EMBEDDING:
            return part, tensor
    raise UnsupportedModelError(f"{manifest.name} has no {EMBEDDING}")


def _table(manifest: Manifest, catalogue: Catalogue, name: str) -> EmbeddingTable:
    part = manifest.by_name["embedding"]
    tensor = next((one for one in part.tensors if one.name == name), None)
    if tensor is None:
        raise UnsupportedModelError(f"{manifest.name} has no {name}")
    return EmbeddingTable(
        path=catalogue.path(part.sha256),
        file_offset=tensor.offset,
        ggml_type=tensor.ggml_type,
        n_embd=tensor.shape[0],
        n_vocab=manifest.n_vocab,
    )


def _entries(manifest: Manifest) -> list[Pair]:
    """The manifest's hyperparameters as GGUF has them."""
    pairs = []
    for entry in manifest.metadata:
        if isinstance(entry.value, bytes):
            raise BrokenModelError(f"the manifest of {manifest.name} has bytes as {entry.key}")
        element_type = None if entry.element_type is None else ValueType(entry.element_type)
        pairs.append(make_pair(entry.key, entry.value, ValueType(entry.value_type), element_type))
    return pairs


def _lay_out(
    catalogue: Catalogue, pairs: list[Pair], pieces: list[_Piece]
) -> tuple[bytes, tuple[Segment, ...]]:
    """A header for `pieces`, and its data section as few ranges of part files."""
    header, placed = write_header(pairs, [(piece.name, piece.shape, piece.ggml_type) for piece in pieces])
    segments: list[Segment] = []
    for piece, info in zip(pieces, placed, strict=True):
        _append(segments, _segment(catalogue, piece, info))
    return header, tuple(segments)


def _segment(catalogue: Catalogue, piece: _Piece, info: TensorInfo) -> Segment:
    if piece.origin is None:
        return Segment(info.offset, info.nbytes, None)
    part, tensor = piece.origin
    return Segment(info.offset, info.nbytes, catalogue.path(part.sha256), tensor.offset + piece.skipped)


def _append(segments: list[Segment], new: Segment) -> None:
    """Add a range, as part of the one before where both go on alike (padding included)."""
    if segments and new.path is not None:
        old = segments[-1]
        if old.path == new.path and new.file_offset - old.file_offset == new.offset - old.offset > 0:
            segments[-1] = Segment(
                old.offset, new.offset + new.length - old.offset, old.path, old.file_offset
            )
            return
    segments.append(new)
