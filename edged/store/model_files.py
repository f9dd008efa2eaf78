"""A model as it comes: one GGUF file, or several named `NAME-00001-of-00003.gguf` that belong together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edged.errors import BrokenModelError, UnsupportedModelError
from edged.store.gguf_file import MOST_ENTRIES, GgufFile, Pair, TensorInfo, Value, read_gguf

_SPLIT_NAME = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.gguf")
_MAX_SPLITS = 9_999
_NOT_A_MODEL = {
    "adapter": "a LoRA adapter",
    "mmproj": "an image projector",
    "imatrix": "an importance matrix",
}


@dataclass(frozen=True, slots=True)
class SourceTensor:
    path: Path
    info: TensorInfo


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A checked model: its metadata, without what only describes the files, and where its tensors are."""

    paths: tuple[Path, ...]
    pairs: dict[str, Pair]
    tensors: dict[str, SourceTensor]
    architecture: str

    def value(self, key: str) -> Value | None:
        """The value, if there is one and it is not a list of more than MOST_ENTRIES."""
        pair = self.pairs.get(key)
        return None if pair is None or pair.count > MOST_ENTRIES else pair.value()

    def hyperparameter(self, name: str, default: int | None = None, least: int = 0) -> int:
        """A count under the architecture's prefix; of a list, the largest. Raises BrokenModelError."""
        key = f"{self.architecture}.{name}"
        value = self.value(key)
        if isinstance(value, tuple):
            numbers = [entry for entry in value if isinstance(entry, int)]
            value = max(numbers, default=None)
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
            raise BrokenModelError(f"{self.paths[0].name} is not a usable model: {key} is missing or absurd")
        return value


def model_name(path: Path) -> str:
    """What a model is called unless its user says otherwise: its file's name without what is technical."""
    match = _SPLIT_NAME.fullmatch(path.name)
    stem = match["stem"] if match else path.name.removesuffix(".gguf")
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:200]
    return cleaned or "model"


def open_model(path: Path) -> ModelFiles:
    """Read and check the headers of all the model's files; any one of a split model names them all.

    Raises BrokenModelError, or UnsupportedModelError for GGUF files that hold something else.
    """
    files = [read_gguf(one) for one in split_paths(path)]
    first = files[0]
    _check_splits(files)
    architecture = first.get("general.architecture")
    if not isinstance(architecture, str) or not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", architecture):
        raise BrokenModelError(f"{first.path.name} is not a usable model: it does not name its architecture")
    kind = first.get("general.type")
    if isinstance(kind, str) and kind in _NOT_A_MODEL:
        raise UnsupportedModelError(f"{first.path.name} is {_NOT_A_MODEL[kind]}, not a language model")
    tensors: dict[str, SourceTensor] = {}
    for file in files:
        for name, info in file.tensors.items():
            if name in tensors:
                raise BrokenModelError(
                    f"{file.path.name} has the tensor {name!r}, as another of its files has"
                )
            tensors[name] = SourceTensor(file.path, info)
    if not tensors:
        raise BrokenModelError(f"{first.path.name} has no tensors: it is a vocabulary or an empty model")
    pairs = {
        key: first.pairs[key]
        for key in sorted(first.pairs)
        if not key.startswith("split.") and key != "general.alignment"
    }
    return ModelFiles(tuple(file.path for file in files), pairs, tensors, architecture)


def split_paths(path: Path) -> list[Path]:
    """All files of the model that `path` belongs to, in order. Raises BrokenModelError if one is missing."""
    match = _SPLIT_NAME.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    if not 1 <= int(match["index"]) <= count <= _MAX_SPLITS:
        raise BrokenModelError(f"{path.name} names a piece that cannot be")
    paths = [
        path.with_name(f"{match['stem']}-{index:05d}-of-{count:05d}.gguf") for index in range(1, count + 1)
    ]
    for one in paths:
        if not one.is_file():
            raise BrokenModelError(f"{path.name} is one of {count} files, of which {one.name} is missing")
    return paths


def _check_splits(files: list[GgufFile]) -> None:
    total = sum(len(file.tensors) for file in files)
    for index, file in enumerate(files):
        count = file.get("split.count")
        if count is None and len(files) == 1:
            continue
        if count not in (len(files), 0) and not (count is None and index > 0):
            raise BrokenModelError(
                f"{file.path.name} is one of {count} files of a model; keep them together, under the names "
                "they were published with"
            )
        if file.get("split.no") not in (index, None):
            raise BrokenModelError(
                f"{file.path.name} is not piece {index + 1} of its model, as its name says"
            )
    claimed = files[0].get("split.tensors.count")
    if len(files) > 1 and claimed is not None and claimed != total:
        raise BrokenModelError(
            f"{files[0].path.name} and its other pieces have {total} tensors, not {claimed}"
        )
