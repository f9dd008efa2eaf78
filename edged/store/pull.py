"""Pulling: a model from Hugging Face comes into the store."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils.tqdm import tqdm

from edged.errors import DamagedPartError, EdgedError, SettingsError, StoreError, UnknownModelError
from edged.store.catalogue import Catalogue
from edged.store.importer import import_model
from edged.store.manifest import Manifest
from edged.store.part_file import disk_full, free_bytes

log = logging.getLogger(__name__)

Report = Callable[[str, int, int], None]
"""Called with what is being done (for a person), bytes done and bytes in all."""

DEFAULT_QUANTISATION = "Q4_K_M"  # what most people run: small, and hardly worse than the original

_NAME = re.compile(
    r"(?:hf:)?(?:https://(?:huggingface\.co|hf\.co)/)?"
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w][\w.-]*)/?(?::(?P<choice>[\w./ +-]+))?"
)
_PIECE = re.compile(r"-\d{5}-of-\d{5}$")
_QUANTISATION = re.compile(
    r"(?i)(?:^|[-._/])((?:UD-)?(?:I?Q\d\w*|TQ\d_\d|BF16|F16|F32|MXFP4\w*))(?=$|[-._/])"
)
_NOT_A_MODEL = ("mmproj", "imatrix")
_SPARE = 64 * 2**20
_ASK_S = 20.0

# The hub's library lets its HTTP library's errors through; their root is the first base of its own.
_FAILURES: tuple[type[Exception], ...] = (HfHubHTTPError.__bases__[0], OSError)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    name: str  # path inside the repository
    size: int
    sha256: str | None  # where the hub knows it


def pull_model(
    name: str,
    catalogue: Catalogue,
    report: Report | None = None,
    replace: bool = False,
    endpoint: str | None = None,
) -> Manifest:
    """Download a GGUF model and import it. `name`: `owner/repo` or `owner/repo:CHOICE`, or `hf:` and that.

    CHOICE is a file's name or a quantisation; without one it is Q4_K_M, or the only one there is. What was
    downloaded is kept only where the download broke off, to go on with. `endpoint`: another hub than
    Hugging Face (HF_ENDPOINT does the same).
    Raises SettingsError, UnknownModelError, StoreError, DiskFullError, and what `import_model` raises.
    """
    match = _NAME.fullmatch(name.strip())
    if match is None:
        raise SettingsError(f"{name!r} names no model: use OWNER/REPO or OWNER/REPO:Q4_K_M")
    repo, choice = match["repo"], match["choice"] or ""
    hub_logging.set_verbosity(logging.ERROR)  # its warnings of a slow network belong in no one's terminal
    revision, files = _list(repo, endpoint)
    wanted = choose(repo, files, choice)
    target = catalogue.home / "store" / "downloads" / repo.replace("/", "--")
    total = sum(file.size for file in wanted)
    # The download and the parts cut from it are on the disk together for a while.
    needed = 2 * total - _downloaded(target) + _SPARE
    if free_bytes(catalogue.home) < needed:
        raise disk_full(catalogue.home, needed)
    paths = _download(repo, revision, wanted, target, endpoint, report)
    for file, path in zip(wanted, paths, strict=True):
        _check(file, path)

    def cutting(done: int, of: int) -> None:
        if report is not None:
            report(f"importing {repo}", done, of)

    try:
        return import_model(paths[0], catalogue, replace=replace, report=cutting)
    finally:
        shutil.rmtree(target, ignore_errors=True)


def choose(repo: str, files: Sequence[RemoteFile], choice: str) -> list[RemoteFile]:
    """The files of the one model that `choice` means, in order. UnknownModelError says what there is."""
    groups: dict[str, list[RemoteFile]] = {}
    for file in sorted(files, key=lambda file: file.name):
        stem = file.name.removesuffix(".gguf")
        base = stem.rpartition("/")[2].casefold()
        if stem != file.name and not any(base.startswith(kind) for kind in _NOT_A_MODEL):
            groups.setdefault(_PIECE.sub("", stem), []).append(file)
    if not groups:
        raise UnknownModelError(f"{repo} has no GGUF files; look for a repository whose name ends in -GGUF")
    fitting = _fitting(groups, choice)
    if not fitting:
        there = sorted({found[-1] for stem in groups if (found := _QUANTISATION.findall(stem))})
        listed = ", ".join(there or sorted(f"{stem}.gguf" for stem in groups))
        missing = f"nothing called {choice!r}" if choice else f"several models and no {DEFAULT_QUANTISATION}"
        raise UnknownModelError(f"{repo} has {missing}; choose with `{repo}:CHOICE` from: {listed}")
    # `UD-Q4_K_XL` fits Q4_K_XL too: the plainest name is meant.
    return groups[min(fitting, key=lambda stem: (len(stem), stem))]


def _fitting(groups: dict[str, list[RemoteFile]], choice: str) -> list[str]:
    if not choice:
        return list(groups) if len(groups) == 1 else _fitting(groups, DEFAULT_QUANTISATION)
    wanted = choice.casefold().removesuffix(".gguf")
    named = [
        stem
        for stem, files in groups.items()
        if wanted in (stem.casefold(), stem.casefold().rpartition("/")[2])
        or any(wanted == file.name.casefold().removesuffix(".gguf") for file in files)
    ]
    if named:
        return named
    within = re.compile(rf"(?:^|[-._/]){re.escape(wanted)}(?:$|[-._/])")
    return [stem for stem in groups if within.search(stem.casefold())]


def _list(repo: str, endpoint: str | None) -> tuple[str, list[RemoteFile]]:
    """The repository's present revision and its files."""
    try:
        info = HfApi(endpoint=endpoint).model_info(repo, files_metadata=True, timeout=_ASK_S)
    except _FAILURES as error:
        raise _in_words(error, repo) from None
    files = [
        RemoteFile(one.rfilename, one.size or 0, one.lfs.sha256 if one.lfs else None)
        for one in info.siblings or []
    ]
    return info.sha or "main", files


def _download(
    repo: str,
    revision: str,
    files: Sequence[RemoteFile],
    target: Path,
    endpoint: str | None,
    report: Report | None,
) -> list[Path]:
    total = sum(file.size for file in files)
    before = 0
    paths = []
    for file in files:

        def advance(done: int, before: int = before) -> None:
            if report is not None:
                report(f"downloading {repo}", min(before + done, total), total)

        try:
            path = hf_hub_download(
                repo,
                file.name,
                revision=revision,
                local_dir=target,
                endpoint=endpoint,
                tqdm_class=_bar(advance),
            )
        except _FAILURES as error:
            raise _in_words(error, repo) from None
        paths.append(Path(path))
        before += file.size
    return paths


def _bar(advance: Callable[[int], None]) -> type[tqdm]:
    """A progress bar for the hub's library that draws nothing and tells `advance` how far it is."""

    class Silent(tqdm):
        def __init__(self, *args: Any, initial: int = 0, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]
            self._done = int(initial)
            advance(self._done)

        def update(self, n: float | None = 1) -> bool | None:
            self._done += int(n or 0)
            advance(self._done)
            return None

    return Silent


def _check(file: RemoteFile, path: Path) -> None:
    """Compare with the hub's hash: a download that went wrong must not become a model."""
    if file.sha256 is None:
        return
    with path.open("rb") as opened:
        right = hashlib.file_digest(opened, "sha256").hexdigest() == file.sha256
    if not right:
        path.unlink()
        raise DamagedPartError(f"{file.name} was damaged on the way from Hugging Face; pull it again")


def _downloaded(target: Path) -> int:
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())


def _in_words(error: Exception, repo: str) -> EdgedError:
    """What went wrong at the hub, in one line for a person."""
    log.debug("at the hub", exc_info=error)
    if isinstance(error, GatedRepoError):
        return UnknownModelError(
            f"{repo} is only for those who accept its terms: do so on its page, and set HF_TOKEN"
        )
    if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
        return UnknownModelError(
            f"there is no public repository {repo} on Hugging Face (or it needs HF_TOKEN)"
        )
    if isinstance(error, OfflineModeIsEnabled):
        return StoreError(f"cannot pull {repo}: HF_HUB_OFFLINE is set")
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return StoreError(f"cannot pull {repo}: Hugging Face answered with status {status}; try again later")
    reason = error.strerror if isinstance(error, OSError) and error.errno else None
    reason = reason or "Hugging Face cannot be reached; is there an Internet connection?"
    return StoreError(f"cannot pull {repo}: {reason}")
