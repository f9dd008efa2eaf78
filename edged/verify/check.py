"""Verifying a model: the whole of it against windows, in a process that may die of it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edged.device.local_device import memory_budget
from edged.errors import EdgedError, SettingsError, WindowError
from edged.planning.context import CHUNK_IN_RING, decided
from edged.planning.plan import ContextOptions, FlashAttention, KvType
from edged.store.catalogue import Catalogue
from edged.store.in_place import refer_to
from edged.store.manifest import Manifest
from edged.store.model_files import open_model
from edged.store.part_file import readable_size
from edged.verify.cuts import Cut, Refused, cut_into, usual_cuts
from edged.verify.jobs import CutDone, Inspect, RunCut, RunWhole, Subject
from edged.verify.report import CutResult, Report
from edged.verify.script import LEAST_TOKENS, MOST_TOKENS, make_script, positions_needed
from edged.verify.session import Session

Show = Callable[[str, int, int], None]
"""Called with what is being done, and how many of how many runs of windows are done."""

SMALL_BYTES = 2**30  # of weights: every allowed boundary is tried at once
SMALL_LAYERS = 48


@dataclass(frozen=True, slots=True)
class Wishes:
    """How to verify. `windows`: the numbers of windows to try; () for the usual ones."""

    n_threads: int
    windows: tuple[int, ...] = ()
    n_tokens: int = 48
    kv_type: KvType = "f16"
    flash_attention: FlashAttention = "auto"


def verify(model: str, home: Path, wishes: Wishes, show: Show) -> Report:
    """Run the whole model, then each cut, and compare. `model` is a file's path or a model of `home`.

    Raises EdgedError where the model cannot be run at all; what a cut dies of is in the report.
    """
    with tempfile.TemporaryDirectory(prefix="edged-verify-") as made:
        scratch = Path(made)
        with Session(scratch / "printed") as session:
            return verify_in(session, scratch, model, home, wishes, show)


def verify_in(session: Session, scratch: Path, model: str, home: Path, wishes: Wishes, show: Show) -> Report:
    """As `verify`, computed by `session`; what it needs on disk is left in `scratch`."""
    if not LEAST_TOKENS <= wishes.n_tokens <= MOST_TOKENS:
        raise SettingsError(f"a verification takes {LEAST_TOKENS} to {MOST_TOKENS} tokens")
    subject = subject_of(session, scratch, model, home, wishes)
    return _Verification(subject, session, show).report(wishes)


def subject_of(session: Session, scratch: Path, model: str, home: Path, wishes: Wishes) -> Subject:
    """The model and how it is run. Raises EdgedError."""
    path = Path(model)
    placed: dict[str, Path] = {}
    if path.is_file():
        files = open_model(path)
        file, home = files.paths[0].resolve(), scratch
        seen = session.inspect(Inspect(file))
        manifest, placed = refer_to(files, scratch, recurrent=seen.recurrent, n_vocab=seen.n_vocab)
    else:
        file, manifest = None, Catalogue(home).find(model)
    n_tokens = min(wishes.n_tokens, manifest.n_ctx_train)  # learned positions go no further
    if n_tokens < LEAST_TOKENS:
        raise WindowError(f"{manifest.name} has a context of {n_tokens} tokens, too few to verify anything")
    script = make_script(n_tokens, manifest.n_vocab, CHUNK_IN_RING, rollback=True)
    context = ContextOptions(
        n_ctx=max(16, positions_needed(script)),
        n_seq_max=2,
        n_ubatch=CHUNK_IN_RING,
        kv_type=wishes.kv_type,
        flash_attention=wishes.flash_attention,
    )
    _check_memory(manifest)
    return Subject(
        file, home, manifest, placed, scratch / "logits", decided(context), wishes.n_threads, n_tokens
    )


def architecture_of(model: str, home: Path) -> str:
    """What the model says it is; "" where it says nothing that can be read."""
    with contextlib.suppress(EdgedError):
        path = Path(model)
        return open_model(path).architecture if path.is_file() else Catalogue(home).find(model).architecture
    return ""


def _weights(manifest: Manifest) -> int:
    return sum(part.weight_bytes for part in manifest.parts)


def _check_memory(manifest: Manifest) -> None:
    wanted, free = _weights(manifest), memory_budget(cap=None, held=0)
    if wanted > free:
        raise WindowError(
            f"to verify {manifest.name}, all of it must be in memory once: {readable_size(wanted)}, and "
            f"{readable_size(free)} are free"
        )


class _Verification:
    def __init__(self, subject: Subject, session: Session, show: Show) -> None:
        self._subject = subject
        self._session = session
        self._show = show
        self._rolled_back = False

    def report(self, wishes: Wishes) -> Report:
        subject, manifest = self._subject, self._subject.manifest
        cuts, refused = self._cuts(wishes.windows)
        if refused and not cuts and manifest.boundaries:  # nothing to compare, so nothing is loaded
            return self._summary((), refused, None, rolled_back=False, reason="no cut asked for is possible")
        done = self._session.whole(RunWhole(subject), lambda at, of: self._show("the whole model", at, of))
        if done.fault:
            raise WindowError(f"{manifest.name} cannot be verified: {done.fault}")
        self._rolled_back = done.rolled_back
        results: list[CutResult] = []
        for cut in cuts:
            outcome = self._result(cut)
            if isinstance(outcome, Refused):
                refused.append(outcome)
            else:
                results.append(outcome)
        # A model that runs whole only is still composed of parts, and a ring of one device runs that.
        whole = self._result(Cut(())) if not manifest.boundaries and subject.file is not None else None
        return self._summary(
            tuple(results),
            refused,
            whole if isinstance(whole, CutResult) else None,
            rolled_back=done.rolled_back,
            reason=f"it runs whole only: {manifest.whole_because}" if not manifest.boundaries else "",
        )

    def _summary(
        self,
        results: tuple[CutResult, ...],
        refused: Sequence[Refused],
        whole: CutResult | None,
        *,
        rolled_back: bool,
        reason: str,
    ) -> Report:
        subject, manifest = self._subject, self._subject.manifest
        return Report(
            model=manifest.name,
            architecture=manifest.architecture,
            n_layers=manifest.n_layers,
            boundaries=manifest.boundaries,
            tokens=subject.n_tokens,
            kv_type=subject.context.kv_type,
            flash_attention=subject.context.flash_attention,
            reference="store" if subject.file is None else "file",
            whole=whole,
            cuts=results,
            refused=tuple(refused),
            rolled_back=rolled_back,
            reason=reason,
        )

    def _cuts(self, windows: Sequence[int]) -> tuple[list[Cut], list[Refused]]:
        manifest = self._subject.manifest
        if not windows:
            small = _weights(manifest) <= SMALL_BYTES and manifest.n_layers <= SMALL_LAYERS
            return usual_cuts(manifest.n_layers, manifest.boundaries, small), []
        found = [
            cut_into(count, manifest.n_layers, manifest.boundaries, manifest.whole_because)
            for count in windows
        ]
        cuts = [one for one in found if isinstance(one, Cut)]
        return list(dict.fromkeys(cuts)), [one for one in found if isinstance(one, Refused)]

    def _result(self, cut: Cut) -> CutResult | Refused:
        try:
            done = self._run(cut)
        except EdgedError as error:
            return CutResult(cut, exact=False, max_abs_diff=None, fault=error.message)
        if done.refused:
            return Refused(cut.n_windows, done.refused)
        if done.first is None:
            return CutResult(cut, exact=True, max_abs_diff=0.0)
        return CutResult(
            cut,
            exact=False,
            max_abs_diff=done.largest,
            differs_from=done.first,
            first_boundary=self._first_boundary(cut, done.first.frame),
        )

    def _first_boundary(self, cut: Cut, frame: int) -> int | None:
        """The first boundary that makes a difference: cut before it and all earlier ones, up to `frame`."""
        good, bad = 0, len(cut.boundaries)
        while bad - good > 1:
            middle = (good + bad) // 2
            try:
                done = self._run(Cut(cut.boundaries[:middle]), until=frame)
            except EdgedError:
                return None
            if done.refused:
                return None
            if done.first is None:
                good = middle
            else:
                bad = middle
        return cut.boundaries[bad - 1] if bad else None

    def _run(self, cut: Cut, until: int | None = None) -> CutDone:
        stage = f"{cut.n_windows} windows" if until is None else f"{cut.n_windows} windows, looking closer"
        return self._session.cut(
            RunCut(self._subject, cut, self._rolled_back, until), lambda at, of: self._show(stage, at, of)
        )
