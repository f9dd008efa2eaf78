"""The store on disk: which models are known here, and which of their parts are held.

HOME/store/models/<id>.manifest    a model that is known here, with all of its parts or some or none
HOME/store/models/<id>.own         it was imported here
HOME/store/parts/<sha256>.gguf     a part, named by its content
HOME/store/images/<sha256>-*.image  a layer as it lies in memory, where it is streamed
HOME/store/scratch/                files being written or fetched
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from edged.errors import DamagedPartError, EdgedError, MissingPartError, StoreError, UnknownModelError
from edged.store.manifest import Manifest, Part
from edged.store.part_file import PartFile, clean_scratch, disk_errors, sync_directory
from edged.store.partial_file import SUFFIX, drop_partial_files
from edged.store.store_lock import StoreLock

log = logging.getLogger(__name__)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHORTEST_ID = 8  # characters of a model's id that are taken for it


class Catalogue:
    """The store of one home directory. Safe with several threads and several processes."""

    def __init__(self, home: Path) -> None:
        """Open the store, making it if need be. Raises StoreError where it cannot be written."""
        self.home = home
        root = home / "store"
        self._models = root / "models"
        self._parts = root / "parts"
        self.images = root / "images"
        self.scratch = root / "scratch"
        with disk_errors(home, 0):
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            for directory in (self._models, self._parts, self.images, self.scratch):
                directory.mkdir(parents=True, exist_ok=True)
            self.lock = StoreLock(root / "lock")
        self._verified: dict[str, tuple[int, int, int]] = {}  # by SHA-256, as `_state` was
        self._read: dict[Path, tuple[tuple[int, int, int], Manifest]] = {}
        self._complained: set[Path] = set()
        with disk_errors(home, 0), self.lock:
            clean_scratch(self.scratch)
            drop_partial_files(self.scratch, but=self._known_parts())

    # ---- models

    def models(self) -> tuple[Manifest, ...]:
        """Every model known here, by name."""
        return tuple(sorted(self._look()[0], key=lambda manifest: (manifest.name.casefold(), manifest.id)))

    def damaged(self) -> tuple[str, ...]:
        """One line for each manifest that cannot be read: which file, and what to do."""
        return tuple(
            f"the model file {path} is damaged: import the model again under the name it had, "
            "or delete the file"
            for path in sorted(self._look()[1])
        )

    def find(self, name: str) -> Manifest:
        """The model of this name, or of a name or id that begins so, if only one does.

        Raises UnknownModelError, which lists what there is.
        """
        try:
            return find_model(name, self.models())
        except UnknownModelError as error:
            raise UnknownModelError("; ".join((error.message, *self.damaged()))) from None

    def get(self, model_id: str) -> Manifest | None:
        """The model of exactly this id, if it is known here."""
        if not _SHA256.fullmatch(model_id):
            return None
        try:
            return self._manifest(self._models / f"{model_id}.manifest")
        except (EdgedError, OSError):
            return None

    def created(self, manifest: Manifest) -> int:
        """When the model came here, in Unix seconds; 0 if it is not known here."""
        try:
            return int(self._manifest_path(manifest).stat().st_mtime)
        except FileNotFoundError:
            return 0

    def owns(self, manifest: Manifest) -> bool:
        """Whether the model was imported here, and not only brought by the ring: then all of it is kept."""
        return self._owned_path(manifest).exists()

    def add(self, manifest: Manifest, replace: bool = False, own: bool = False) -> None:
        """Make a model known, for good where it is this device's `own`.

        What is on the disk already is not written again: there may be no room. Raises StoreError if another
        has its name, unless it may be replaced.
        """
        with self.lock:
            for other in self.models():
                if other.name == manifest.name and other.id != manifest.id:
                    if not replace:
                        raise StoreError(
                            f"there is another model called {manifest.name} already; remove it with "
                            f"`edged rm {manifest.name}` or import under another name"
                        )
                    self._forget(other, keep={part.sha256 for part in manifest.parts})
            if self.get(manifest.id) is None:
                body = manifest.pack()
                with disk_errors(self._models, len(body)), PartFile(self.scratch) as file:
                    file.write(body)
                    file.finish()
                    file.move_to(self._manifest_path(manifest))
            if own and not self.owns(manifest):
                with disk_errors(self._models, 0):
                    self._owned_path(manifest).touch()

    def remove(self, name: str) -> int:
        """Forget a model and drop its parts, save those that another model shares; bytes made free."""
        with self.lock:
            return self._forget(self.find(name))

    # ---- parts

    def has(self, sha256: str) -> bool:
        """Whether the part is here whole (its content unchecked, see `verify`)."""
        return bool(_SHA256.fullmatch(sha256)) and self._part_path(sha256).is_file()

    def path(self, sha256: str) -> Path:
        """Where the part is. Raises MissingPartError."""
        if not self.has(sha256):
            raise MissingPartError(f"the part {sha256[:12]} is not on this device")
        return self._part_path(sha256)

    def missing(self, parts: Iterable[Part]) -> tuple[Part, ...]:
        return tuple(part for part in parts if not self.has(part.sha256))

    def held(self, manifest: Manifest) -> int:
        """Bytes of the model's parts on this device."""
        return sum(
            part.size
            for part in {part.sha256: part for part in manifest.parts}.values()
            if self.has(part.sha256)
        )

    def verify(self, part: Part) -> Path:
        """Check a part's bytes, once per process unless the file changes, and say where it is.

        A damaged part is removed, so that it is fetched anew: DamagedPartError. MissingPartError if absent.
        """
        path = self.path(part.sha256)
        try:
            with path.open("rb") as file:
                state = _state(path)
                if self._verified.get(part.sha256) == state:
                    return path
                good = state[0] == part.size
                good = good and hashlib.file_digest(file, "sha256").hexdigest() == part.sha256
        except OSError as error:
            raise StoreError(
                f"cannot read the part {part.name} at {path}: {error.strerror or error}"
            ) from None
        if not good:
            path.unlink(missing_ok=True)
            raise DamagedPartError(
                f"the part {part.name} on this device was damaged and is removed; it has to be fetched again"
            )
        self._verified[part.sha256] = state
        return path

    def stored(self) -> int:
        """Bytes of all parts on this device, whichever models they are of."""
        found = 0
        with contextlib.suppress(OSError):  # the folder may be gone for now, as with an unmounted disk
            for path in self._parts.iterdir():
                with contextlib.suppress(FileNotFoundError):  # removed a moment ago
                    found += path.stat().st_size
        return found

    def new_part(self) -> PartFile:
        """A scratch file for a part; give it to `adopt`, and close it in any case."""
        with self.lock:
            return PartFile(self.scratch)

    def adopt(self, file: PartFile) -> str:
        """Take a finished scratch file into the store; its SHA-256. One known to be sound is kept."""
        sha256 = file.finish()
        with self.lock:
            target = self._part_path(sha256)
            if not self.has(sha256) or self._verified.get(sha256) != _state(target):
                file.move_to(target)
                self._verified[sha256] = _state(target)
        return sha256

    def partial_path(self, sha256: str) -> Path:
        """Where the part is gathered while it is fetched."""
        return self.scratch / f"{sha256}{SUFFIX}"

    def adopt_path(self, path: Path, part: Part) -> None:
        """Take a durable file that was checked to be this part into the store; it is moved."""
        target = self._part_path(part.sha256)
        with self.lock:
            path.replace(target)
            sync_directory(target.parent)
            self._verified[part.sha256] = _state(target)

    def keep_only(self, manifest: Manifest, parts: Collection[Part]) -> int:
        """Drop the model's other parts, save those that another model shares; bytes made free."""
        with self.lock:
            return self._drop(manifest, keep={part.sha256 for part in parts})

    def drop_images(self, sha256: str) -> int:
        """Remove the images of a layer; bytes made free."""
        freed = 0
        for image in self.images.glob(f"{sha256}-*"):
            with contextlib.suppress(FileNotFoundError):
                size = image.stat().st_size
                image.unlink()
                freed += size
        return freed

    def drop_unused(self, shas: Collection[str]) -> None:
        """Remove these parts where no known model has them: what a refused import has written."""
        with self.lock:
            for sha256 in set(shas) - self._known_parts():
                self._part_path(sha256).unlink(missing_ok=True)

    # ---- inside; the lock is held where something is removed

    def _look(self) -> tuple[list[Manifest], list[Path]]:
        """Every model known here, and the manifests that cannot be read; each of these is logged once."""
        found: list[Manifest] = []
        damaged: list[Path] = []
        for path in self._models.glob("*.manifest"):
            try:
                found.append(self._manifest(path))
            except FileNotFoundError:  # removed by another process a moment ago
                continue
            except (EdgedError, OSError) as error:
                damaged.append(path)
                if path not in self._complained:
                    log.info("ignoring the unreadable manifest %s: %s", path, error)
        self._complained = set(damaged)
        return found, damaged

    def _forget(self, manifest: Manifest, keep: Collection[str] = ()) -> int:
        self._manifest_path(manifest).unlink(missing_ok=True)
        self._owned_path(manifest).unlink(missing_ok=True)
        return self._drop(manifest, keep)

    def _drop(self, manifest: Manifest, keep: Collection[str]) -> int:
        shared = {part.sha256 for model in self.models() if model.id != manifest.id for part in model.parts}
        freed = 0
        for part in manifest.parts:
            if part.sha256 not in shared and part.sha256 not in keep:
                with contextlib.suppress(FileNotFoundError):
                    self._part_path(part.sha256).unlink()
                    freed += part.size
                self.partial_path(part.sha256).unlink(missing_ok=True)
                freed += self.drop_images(part.sha256)
        return freed

    def _known_parts(self) -> set[str]:
        return {part.sha256 for model in self.models() for part in model.parts}

    def _manifest(self, path: Path) -> Manifest:
        changed = _state(path)
        known = self._read.get(path)
        if known is not None and known[0] == changed:
            return known[1]
        manifest = Manifest.unpack(path.read_bytes())
        if path.stem != manifest.id:
            raise StoreError("its content is not what its name says")
        self._read[path] = (changed, manifest)
        return manifest

    def _manifest_path(self, manifest: Manifest) -> Path:
        return self._models / f"{manifest.id}.manifest"

    def _owned_path(self, manifest: Manifest) -> Path:
        return self._models / f"{manifest.id}.own"

    def _part_path(self, sha256: str) -> Path:
        return self._parts / f"{sha256}.gguf"


def _state(path: Path) -> tuple[int, int, int]:
    """What changes when a file does: size, time of change, inode."""
    status = path.stat()
    return (status.st_size, status.st_mtime_ns, status.st_ino)


def find_model(name: str, known: Sequence[Manifest]) -> Manifest:
    """As Catalogue.find, among `known`."""
    exact = [model for model in known if name in (model.name, model.id)]
    if exact:
        return exact[0]
    wanted = name.casefold()
    fitting = [model for model in known if wanted and model.name.casefold().startswith(wanted)]
    if not fitting and len(name) >= _SHORTEST_ID:
        fitting = [model for model in known if model.id.startswith(wanted)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        choices = ", ".join(model.name for model in fitting)
        raise UnknownModelError(f"several models begin with {name!r}: {choices}; name one of them in full")
    if not known:
        raise UnknownModelError(
            f"there is no model {name!r}, nor any other; bring one with `edged import` or `edged pull`"
        )
    choices = ", ".join(model.name for model in known)
    raise UnknownModelError(f"there is no model {name!r}; there is: {choices}")
