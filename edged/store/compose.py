"""Composing a window: a GGUF with layers [first, last) that exists only as a header and ranges of part files.

See `edged.store.architecture` for what differs between architectures. A window that is not the whole model
has no vocabulary. Where it does not end the model, dummies of a few rows stand in for the embedding table and
the output matrix, which libllama insists on and never computes with; where it does, the true matrix is there.
"""

from __future__ import annotations

from dataclasses import dataclass

from edged.backend.source import EmbeddingTable, Segment, WindowSource
from edged.errors import BrokenModelError, MissingPartError, UnsupportedModelError
from edged.store.architecture import DUMMY_VOCABULARY, EMBEDDING, OUTPUT, RULES, per_layer
from edged.store.catalogue import Catalogue
from edged.store.ggml_types import layouts
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

_F32 = 0


@dataclass(frozen=True, slots=True)
class _Piece:
    """One tensor of a window: `origin` is its bytes' place in a part, or None for zeros."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    origin: tuple[Part, TensorEntry] | None


def compose(manifest: Manifest, catalogue: Catalogue, first: int, last: int) -> WindowSource:
    """The window of layers [first, last) of a model whose parts for it are in the store.

    Raises UnsupportedModelError where the model may not be cut so, MissingPartError where a part is absent.
    """
    _check(manifest, first, last)
    for part in manifest.parts_for(first, last):
        if catalogue.path(part.sha256).stat().st_size != part.size:
            raise MissingPartError(f"the part {part.name} of {manifest.name} on this device is incomplete")
    if first == 0 and last == manifest.n_layers:
        return _whole(manifest, catalogue)
    ends = last == manifest.n_layers
    pieces = _end_pieces(manifest) if ends else _stand_ins(manifest)
    pieces += [_of(part, tensor) for part in _shared(manifest) for tensor in part.tensors]
    for index in range(first, last):
        part = manifest.layer(index)
        for tensor in part.tensors:
            name = tensor.name.replace(f"blk.{index}.", f"blk.{index - first}.", 1)
            pieces.append(_Piece(name, tensor.shape, tensor.ggml_type, (part, tensor)))
    n_vocab = manifest.n_vocab if ends else DUMMY_VOCABULARY
    header, segments = _lay_out(catalogue, _window_pairs(manifest, first, last, n_vocab), pieces)
    rule = RULES[manifest.architecture]
    return WindowSource(
        first=first,
        last=last,
        n_embd=manifest.n_embd,
        n_vocab=manifest.n_vocab,
        header=header,
        segments=segments,
        embedding=_embedding_table(manifest, catalogue) if first == 0 else None,
        capture=None if ends else f"{rule.capture}-{last - first - 1}",
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
    if (first, last) != (0, manifest.n_layers) and manifest.architecture not in RULES:
        raise UnsupportedModelError(
            f"{manifest.name} was cut by another version of edged: this one has no rule for "
            f"{manifest.architecture}"
        )


def _whole(manifest: Manifest, catalogue: Catalogue) -> WindowSource:
    """Everything: all metadata with the tokenizer, all tensors, and libllama takes the tokens itself."""
    vocabulary = read_gguf(catalogue.path(manifest.vocabulary.sha256))
    pieces = [_of(part, tensor) for part in manifest.parts for tensor in part.tensors]
    header, segments = _lay_out(catalogue, list(vocabulary.pairs.values()), pieces)
    return WindowSource(
        first=0,
        last=manifest.n_layers,
        n_embd=manifest.n_embd,
        n_vocab=manifest.n_vocab,
        header=header,
        segments=segments,
        embedding=None,
        capture=None,
    )


def _of(part: Part, tensor: TensorEntry, name: str | None = None) -> _Piece:
    return _Piece(name or tensor.name, tensor.shape, tensor.ggml_type, (part, tensor))


def _shared(manifest: Manifest) -> list[Part]:
    return [manifest.by_name["shared"]] if "shared" in manifest.by_name else []


def _end_pieces(manifest: Manifest) -> list[_Piece]:
    """What the last window has after its layers: the true norm, and the output matrix once."""
    rule = RULES[manifest.architecture]
    output = manifest.by_name.get("output")
    found = [_of(output, tensor) for tensor in output.tensors if tensor.name != OUTPUT] if output else []
    if manifest.tied:
        return [*found, _of(*_embedding(manifest))]
    assert output is not None
    matrix = next(tensor for tensor in output.tensors if tensor.name == OUTPUT)
    if rule.tied_output:
        return [*found, _of(output, matrix, EMBEDDING)]
    return [*found, _of(output, matrix), _unread_embedding(manifest)]


def _unread_embedding(manifest: Manifest) -> _Piece:
    """An embedding table of zeros, as high as libllama wants it and in the smallest type that fits."""
    shape = (manifest.n_embd, manifest.n_vocab)
    weights = {
        number: size
        for number, layout in layouts().items()
        if layout.name.startswith(("q", "f")) and layout.name not in ("q8_1", "q8_K")
        if (size := tensor_bytes(number, shape)) is not None
    }
    return _Piece(EMBEDDING, shape, min(weights, key=lambda number: (weights[number], number)), None)


def _stand_ins(manifest: Manifest) -> list[_Piece]:
    """Zeros for what a window that does not end the model must have and does not compute with."""
    rows = (manifest.n_embd, DUMMY_VOCABULARY)
    pieces = [_Piece(EMBEDDING, rows, _F32, None)]
    output = manifest.by_name.get("output")
    for tensor in output.tensors if output else ():
        if tensor.name.startswith("output_norm."):
            pieces.append(_Piece(tensor.name, tensor.shape, tensor.ggml_type, None))
    if not RULES[manifest.architecture].tied_output:
        pieces.append(_Piece(OUTPUT, rows, _F32, None))
    return pieces


def _embedding(manifest: Manifest) -> tuple[Part, TensorEntry]:
    part = manifest.by_name["embedding"]
    for tensor in part.tensors:
        if tensor.name == EMBEDDING:
            return part, tensor
    raise UnsupportedModelError(f"{manifest.name} has no {EMBEDDING}")


def _embedding_table(manifest: Manifest, catalogue: Catalogue) -> EmbeddingTable:
    part, tensor = _embedding(manifest)
    return EmbeddingTable(
        path=catalogue.path(part.sha256),
        file_offset=tensor.offset,
        ggml_type=tensor.ggml_type,
        n_embd=manifest.n_embd,
        n_vocab=manifest.n_vocab,
    )


def _window_pairs(manifest: Manifest, first: int, last: int, n_vocab: int) -> list[Pair]:
    """The model's metadata as it holds for the window alone."""
    architecture = manifest.architecture
    rule = RULES[architecture]
    changed = {f"{architecture}.block_count", f"{architecture}.vocab_size"}
    scales = {f"{architecture}.{name}" for name in rule.entry_scales} if first > 0 else set()
    pairs = [
        make_pair(f"{architecture}.block_count", last - first, ValueType.UINT32),
        make_pair(f"{architecture}.vocab_size", n_vocab, ValueType.UINT32),
        make_pair("tokenizer.ggml.model", "no_vocab", ValueType.STRING),
    ]
    for entry in manifest.metadata:
        if entry.key in changed:
            continue
        value = entry.value
        if entry.key in scales:
            value = 1.0
        elif isinstance(value, tuple) and per_layer(architecture, entry.key, value, manifest.n_layers):
            value = value[first:last]
        if isinstance(value, bytes):
            raise BrokenModelError(f"the manifest of {manifest.name} has bytes as {entry.key}")
        element_type = None if entry.element_type is None else ValueType(entry.element_type)
        pairs.append(make_pair(entry.key, value, ValueType(entry.value_type), element_type))
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
    return Segment(info.offset, info.nbytes, catalogue.path(part.sha256), tensor.offset)


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
