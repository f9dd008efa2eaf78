"""A model file as if it were imported, without a copy: its parts are ranges of the file itself."""

from __future__ import annotations

import hashlib
from pathlib import Path

from edged.store.catalogue import Catalogue
from edged.store.importer import describe, drafts_of, write_draft
from edged.store.manifest import Manifest, Part, TensorEntry
from edged.store.model_files import ModelFiles, model_name


class FileCatalogue(Catalogue):
    """The store of one model file; what little is not in the file itself is kept below `home`."""

    def __init__(self, home: Path, files: dict[str, Path]) -> None:
        super().__init__(home)
        self._files = files

    def has(self, sha256: str) -> bool:
        return sha256 in self._files or super().has(sha256)

    def path(self, sha256: str) -> Path:
        return self._files.get(sha256) or super().path(sha256)


def refer_to(
    files: ModelFiles, home: Path, *, recurrent: bool, n_vocab: int
) -> tuple[Manifest, dict[str, Path]]:
    """The manifest of a model where it lies, and the files of its parts, for a FileCatalogue of `home`.

    The parts' names are no hashes of their content, so the manifest is good for this process and its
    children only. A part whose tensors are in several files of a split model is copied below `home`, and so
    is the vocabulary. Raises as `import_model` does.
    """
    catalogue = Catalogue(home)
    placed: dict[str, Path] = {}
    parts: list[Part] = []
    for draft in drafts_of(files):
        paths = {tensor.path for tensor in draft.tensors}
        if len(paths) != 1:
            parts.append(write_draft(draft, catalogue))
            continue
        (path,) = paths
        name = hashlib.sha256(f"{draft.name} {path.resolve()}".encode()).hexdigest()
        placed[name] = path.resolve()
        tensors = tuple(
            TensorEntry(
                name=one.info.name,
                ggml_type=one.info.ggml_type,
                shape=one.info.shape,
                offset=one.info.offset,
                nbytes=one.info.nbytes,
            )
            for one in draft.tensors
        )
        parts.append(Part(name=draft.name, sha256=name, size=path.stat().st_size, tensors=tensors))
    manifest = describe(files, model_name(files.paths[0]), tuple(parts), recurrent=recurrent, n_vocab=n_vocab)
    return manifest, placed
