"""Importing: a GGUF model becomes parts of the store and a manifest, and is tried before it is accepted."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from edged.errors import BrokenModelError, SettingsError, shown
from edged.store import probe
from edged.store.architectures import cuts, table
from edged.store.architectures.shape import MAX_LAYERS, Shape, main_layers
from edged.store.catalogue import Catalogue
from edged.store.gguf_file import Pair, ValueType, make_pair, padded, write_header
from edged.store.index_tables import check_index_tables
from edged.store.manifest import Manifest, MetadataEntry, Part, TensorEntry
from edged.store.model_files import ModelFiles, SourceTensor, model_name, open_model
from edged.store.part_file import BLOCK, disk_errors, disk_full, free_bytes

Report = Callable[[int, int], None]
"""Called with bytes done and bytes in all; what it raises stops the work and leaves nothing behind."""

_LAYER = re.compile(r"blk\.(\d{1,4})\.")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,199}")
_SPARE = 16 * 2**20  # bytes left free on the disk: a full one disturbs more than us
_MOST_ENTRIES = 65_536  # of a list in the manifest; hyperparameters are short


def import_model(
    path: Path,
    catalogue: Catalogue,
    name: str | None = None,
    replace: bool = False,
    report: Report | None = None,
) -> Manifest:
    """Cut the model at `path` into the store, try it in a process of its own, and make it known.

    Raises BrokenModelError or UnsupportedModelError for a model that cannot be used, DiskFullError, and
    StoreError where another model has the name. After an error the store is as it was before.
    """
    name = name or model_name(path)
    if not _NAME.fullmatch(name):
        raise SettingsError(f"{name!r} cannot be a model's name: use letters, digits and . _ : / -")
    files = open_model(path)
    trial = probe.try_file(files.paths[0])
    check_index_tables(files)
    drafts = drafts_of(files)
    total = sum(draft.estimate for draft in drafts)
    if free_bytes(catalogue.scratch) < total + _SPARE:
        raise disk_full(catalogue.scratch, total + _SPARE)
    progress = _Progress(report, total)
    written: list[str] = []
    try:
        parts = tuple(write_draft(draft, catalogue, written, progress) for draft in drafts)
        manifest = describe(files, name, parts, recurrent=trial.recurrent, n_vocab=trial.n_vocab)
        manifest = _tried(manifest, catalogue)
        while True:
            with catalogue.lock:  # between a look and the entry no other process may drop a part
                gone = {part.sha256 for part in catalogue.missing(parts)}
                if not gone:
                    catalogue.add(manifest, replace=replace, own=True)
                    return manifest
            for draft, part in zip(drafts, parts, strict=True):
                if part.sha256 in gone:
                    write_draft(draft, catalogue, written)
    except BaseException:
        with contextlib.suppress(OSError):
            catalogue.drop_unused(written)
        raise


def _tried(manifest: Manifest, catalogue: Catalogue) -> Manifest:
    """The model as it works here: in windows, or else whole only. Raises BrokenModelError."""
    if not table.is_known(manifest.architecture) and (why := probe.why_not_in_windows(manifest, catalogue)):
        manifest = manifest.whole_only(why)
    probe.try_windows(manifest, catalogue)
    return manifest


@dataclass(frozen=True, slots=True)
class Draft:
    """A part yet to be written."""

    name: str
    pairs: tuple[Pair, ...]
    tensors: tuple[SourceTensor, ...]

    @property
    def estimate(self) -> int:
        """Bytes it will take, up to a page or two."""
        pairs = sum(len(pair.raw) + len(pair.key) + 24 for pair in self.pairs)
        return padded(pairs + 128 * len(self.tensors)) + sum(padded(one.info.nbytes) for one in self.tensors)


class _Progress:
    def __init__(self, report: Report | None, total: int) -> None:
        self._report = report
        self._total = total
        self._done = 0

    def advance(self, count: int) -> None:
        self._done += count
        if self._report is not None:
            self._report(min(self._done, self._total), self._total)


def drafts_of(files: ModelFiles) -> list[Draft]:
    """Sort the tensors into parts; the same tensors give the same parts in whatever order they came."""
    n_blocks = files.hyperparameter("block_count")
    if not 1 <= n_blocks <= MAX_LAYERS:
        raise BrokenModelError(f"{files.paths[0].name} is not a usable model: it claims {n_blocks} layers")
    n_layers = _main_layers(files)
    travels = table.has_layer_embeddings(files.architecture)
    predictions = {f"layer.{index:03d}" for index in range(n_layers, n_blocks)}
    groups: dict[str, list[SourceTensor]] = {f"layer.{index:03d}": [] for index in range(n_layers)}
    groups["embedding"] = []
    for name in sorted(files.tensors):
        if (group := _group(name, n_blocks, travels)) not in predictions:
            groups.setdefault(group, []).append(files.tensors[name])
    kind = make_pair("general.architecture", files.architecture, ValueType.STRING)
    drafts = [Draft(name, (kind,), tuple(tensors)) for name, tensors in groups.items()]
    drafts.append(Draft("vocab", tuple(files.pairs.values()), ()))
    return drafts


def _main_layers(files: ModelFiles) -> int:
    """Without the blocks that only guess at later tokens."""
    nextn = files.value(f"{files.architecture}.nextn_predict_layers")
    return main_layers(files.hyperparameter("block_count"), nextn)


def _group(tensor: str, n_layers: int, travels: bool) -> str:
    """`travels`: whether the layers' embedding goes round with the state: only the first window reads it."""
    match = _LAYER.match(tensor)
    if match and int(match[1]) < n_layers:
        return f"layer.{int(match[1]):03d}"
    if tensor.startswith("token_embd.") or (travels and tensor.startswith("per_layer_token_embd.")):
        return "embedding"
    if tensor.startswith("output"):
        return "output"
    return "shared"


def write_draft(
    draft: Draft, catalogue: Catalogue, written: list[str] | None = None, progress: _Progress | None = None
) -> Part:
    """Write a part into the store; its hash is added to `written` if it was not there yet."""
    described = [(one.info.name, one.info.shape, one.info.ggml_type) for one in draft.tensors]
    header, placed = write_header(draft.pairs, described)
    with disk_errors(catalogue.scratch, draft.estimate), catalogue.new_part() as file:
        file.write(header)
        for source, info in zip(draft.tensors, placed, strict=True):
            file.write_zeros(info.offset - file.size)
            for block in _blocks(source):
                file.write(block)
                if progress is not None:
                    progress.advance(len(block))
        file.write_zeros(padded(file.size) - file.size)
        known = catalogue.has(sha256 := file.finish())
        if not known and written is not None:
            written.append(sha256)
        catalogue.adopt(file)
        return Part(
            name=draft.name,
            sha256=sha256,
            size=file.size,
            tensors=tuple(
                TensorEntry(
                    name=info.name,
                    ggml_type=info.ggml_type,
                    shape=info.shape,
                    offset=info.offset,
                    nbytes=info.nbytes,
                )
                for info in placed
            ),
        )


def _blocks(source: SourceTensor) -> Iterator[bytes]:
    try:
        with source.path.open("rb", buffering=0) as file:
            file.seek(source.info.offset)
            left = source.info.nbytes
            while left > 0:
                block = file.read(min(left, BLOCK))
                if not block:
                    raise BrokenModelError(f"{source.path.name} became shorter while it was read")
                left -= len(block)
                yield block
    except OSError as error:
        raise BrokenModelError(f"cannot read {source.path}: {error.strerror or error}") from None


def describe(
    files: ModelFiles, name: str, parts: tuple[Part, ...], recurrent: bool, n_vocab: int
) -> Manifest:
    """The manifest of a model whose parts are `parts`. Raises BrokenModelError."""
    n_embd = files.hyperparameter("embedding_length", least=1)
    metadata = _metadata(files)
    shape = Shape(
        architecture=files.architecture,
        n_layers=_main_layers(files),
        n_blocks=files.hyperparameter("block_count"),
        n_embd=n_embd,
        n_vocab=n_vocab,
        metadata={entry.key: pair.value() for entry, pair in metadata},
    )
    outside = [tensor.name for part in parts if not part.name.startswith("layer.") for tensor in part.tensors]
    found = cuts.cuts(shape, outside)
    embedding = files.tensors.get(cuts.EMBEDDING)
    if found.boundaries and (embedding is None or embedding.info.shape != (n_embd, n_vocab)):
        raise BrokenModelError(
            f"{files.paths[0].name} is not a usable model: its embedding table does not fit its vocabulary"
        )
    try:
        return Manifest(
            name=name,
            architecture=files.architecture,
            n_layers=shape.n_layers,
            n_embd=n_embd,
            n_vocab=n_vocab,
            n_ctx_train=files.hyperparameter("context_length", least=1),
            kv_bytes_per_token_layer=_kv_bytes(files, n_embd),
            recurrent=recurrent,
            boundaries=found.boundaries,
            preferred=found.preferred,
            whole_because=found.reason,
            metadata=tuple(entry for entry, _ in metadata),
            parts=parts,
        )
    except ValidationError as error:
        fault = shown(str(error.errors()[0]["msg"]))
        raise BrokenModelError(f"{files.paths[0].name} is not a usable model: {fault}") from None


def _metadata(files: ModelFiles) -> list[tuple[MetadataEntry, Pair]]:
    """The hyperparameters: all metadata but the tokenizer's, which only a head needs."""
    found = []
    for key, pair in files.pairs.items():
        if key.startswith("tokenizer."):
            continue
        if pair.count > _MOST_ENTRIES:
            raise BrokenModelError(
                f"{files.paths[0].name} is not a usable model: {key} has {pair.count} entries"
            )
        entry = MetadataEntry(
            key=key,
            value_type=int(pair.value_type),
            element_type=None if pair.element_type is None else int(pair.element_type),
            value=pair.value(),
        )
        found.append((entry, pair))
    return found


def _kv_bytes(files: ModelFiles, n_embd: int) -> int:
    """Bytes of keys and values per token in one layer at two bytes a value, the largest of all layers."""
    heads = files.hyperparameter("attention.head_count", 0)
    if heads == 0:
        return 0
    kv_heads = files.hyperparameter("attention.head_count_kv", heads)
    key = files.hyperparameter("attention.key_length", n_embd // heads)
    value = files.hyperparameter("attention.value_length", n_embd // heads)
    return 2 * kv_heads * (key + value)
