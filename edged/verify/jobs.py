"""What the verifying process asks of the one that computes, and what that one answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edged.errors import EdgedError
from edged.planning.plan import ContextOptions
from edged.store.manifest import Manifest
from edged.verify.comparison import Place
from edged.verify.cuts import Cut


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, and how it is run.

    file:   the model's file (the first of several), None for a model of the store of `home`.
    placed: the files of those parts that are not in the store of `home`.
    logits: where the whole model's logits are kept.
    """

    file: Path | None
    home: Path
    manifest: Manifest
    placed: dict[str, Path]
    logits: Path
    context: ContextOptions
    n_threads: int
    n_tokens: int


@dataclass(frozen=True, slots=True)
class Inspect:
    """Have libllama read the file's header. Answered with Inspected."""

    file: Path


@dataclass(frozen=True, slots=True)
class RunWhole:
    """Run the whole model and keep its logits. Answered with WholeDone."""

    subject: Subject


@dataclass(frozen=True, slots=True)
class RunCut:
    """Run a cut against the kept logits, up to the frame `until` if one is given. Answered with CutDone."""

    subject: Subject
    cut: Cut
    rolled_back: bool
    until: int | None = None


Job = Inspect | RunWhole | RunCut


@dataclass(frozen=True, slots=True)
class Inspected:
    n_vocab: int
    recurrent: bool


@dataclass(frozen=True, slots=True)
class WholeDone:
    """`fault`: why its logits can show no difference."""

    rolled_back: bool
    fault: str


@dataclass(frozen=True, slots=True)
class CutDone:
    """`refused`: why the model does not allow this cut."""

    first: Place | None = None
    largest: float = 0.0
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    error: EdgedError


@dataclass(frozen=True, slots=True)
class Advanced:
    """`done` of `total` frames of windows are computed."""

    done: int
    total: int


Answer = Inspected | WholeDone | CutDone | Failed
