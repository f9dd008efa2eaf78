"""The process that computes: it may die of a model, and that is what it is for."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from edged.backend.native import load_window
from edged.errors import EdgedError, UnsupportedModelError, WindowError
from edged.store.compose import compose
from edged.store.in_place import FileCatalogue
from edged.store.probe_child import read_header
from edged.verify.comparison import Comparison, Telling
from edged.verify.jobs import (
    Advanced,
    Answer,
    CutDone,
    Failed,
    Inspect,
    Inspected,
    Job,
    RunCut,
    RunWhole,
    Subject,
    WholeDone,
)
from edged.verify.script import Step, frames, make_script, until
from edged.verify.whole import Whole, WholeFile, WholeWindow, logits_of
from edged.verify.windows import logits_in_windows

Advance = Callable[[int, int], None]


def serve(line: Connection, output: Path) -> None:
    """Answer jobs until the other end is closed. What libllama prints goes to the file `output`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us too; the parent decides
    os.environ["GGML_NO_BACKTRACE"] = "1"  # a debugger started by a dying child helps nobody
    printed = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(printed, stream)
    os.close(printed)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            job = line.recv()
            line.send(_answer(job, lambda done, total: line.send(Advanced(done, total))))


def _answer(job: Job, advance: Advance) -> Answer:
    try:
        match job:
            case Inspect(file):
                trial = read_header(file)
                return Inspected(trial.n_vocab, trial.recurrent)
            case RunWhole(subject):
                return run_whole(subject, advance)
            case RunCut():
                return run_cut(job, advance)
    except EdgedError as error:
        return Failed(error)
    except MemoryError:
        return Failed(WindowError("there is not enough memory to verify the model"))
    except Exception as error:  # noqa: BLE001 - a mistake of ours is not to look like a death by the model
        return Failed(WindowError(f"a fault in edged itself: {type(error).__name__}: {error}"))


def run_whole(subject: Subject, advance: Advance) -> WholeDone:
    """Raises EdgedError."""
    script = _script(subject, rollback=not subject.manifest.recurrent)
    total = sum(1 for _ in frames(script))
    telling = Telling()
    count = 0
    with subject.logits.open("wb") as kept, _whole(subject) as whole:
        for logits in logits_of(whole, script):
            telling.add(logits)
            np.save(kept, logits, allow_pickle=False)
            count += 1
            advance(count, total)
    return WholeDone(rolled_back=not subject.manifest.recurrent and count == total, fault=telling.fault)


def run_cut(job: RunCut, advance: Advance) -> CutDone:
    """Raises EdgedError."""
    subject = job.subject
    script = _script(subject, job.rolled_back)
    if job.until is not None:
        script = until(script, job.until)
    catalogue = FileCatalogue(subject.home, subject.placed)
    edges = job.cut.edges(subject.manifest.n_layers)
    try:
        sources = [compose(subject.manifest, catalogue, first, last) for first, last in edges]
    except UnsupportedModelError as error:
        return CutDone(refused=error.message)
    wanted = list(frames(script))
    total, done = len(wanted) * len(sources), 0

    def advanced() -> None:
        nonlocal done
        done += 1
        advance(done, total)

    comparison = Comparison()
    found = logits_in_windows(sources, script, subject.context, subject.n_threads, advanced)
    with subject.logits.open("rb") as kept:
        for frame, logits in zip(wanted, found, strict=True):
            comparison.add(frame, np.load(kept, allow_pickle=False), logits)
    return CutDone(comparison.first, comparison.largest)


def _script(subject: Subject, rollback: bool) -> tuple[Step, ...]:
    context = subject.context
    return make_script(subject.n_tokens, subject.manifest.n_vocab, context.n_ubatch, rollback)


@contextlib.contextmanager
def _whole(subject: Subject) -> Iterator[Whole]:
    if subject.file is not None:
        with WholeFile(subject.file, subject.context, subject.n_threads) as whole:
            yield whole
        return
    source = compose(
        subject.manifest, FileCatalogue(subject.home, subject.placed), 0, subject.manifest.n_layers
    )
    window = load_window(source, subject.context, subject.n_threads)
    try:
        yield WholeWindow(window)
    finally:
        window.close()
