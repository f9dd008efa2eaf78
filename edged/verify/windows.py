"""A model in windows, run one window after the other: no more than one is in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from edged.backend.native import NativeWindow, load_window
from edged.backend.source import WindowSource
from edged.backend.window import Hidden, KvOp, Logits, Tokens
from edged.errors import WindowError
from edged.planning.plan import ContextOptions
from edged.verify.script import Rollback, Step, frames

Advance = Callable[[], None]
"""Called after every frame of every window; what it raises ends the run."""


def logits_in_windows(
    sources: Sequence[WindowSource],
    script: tuple[Step, ...],
    context: ContextOptions,
    n_threads: int,
    advance: Advance,
) -> Iterator[Logits]:
    """The wanted logits of each frame (n_outputs, n_vocab). Raises WindowError.

    The script's tokens are known beforehand, so a window can compute all of its frames before the next one
    is loaded; what it is given, and in which order, is what it would be given in a ring.
    """
    states: list[Tokens | Hidden] = [frame.ids for frame in frames(script)]
    for source in sources[:-1]:
        window = load_window(source, context, n_threads)
        try:
            states = list(_through(window, script, states, advance, last=False))
        finally:
            window.close()
    window = load_window(sources[-1], context, n_threads)
    try:
        yield from _through(window, script, states, advance, last=True)
    finally:
        window.close()


def _through(
    window: NativeWindow,
    script: tuple[Step, ...],
    states: Sequence[Tokens | Hidden],
    advance: Advance,
    last: bool,
) -> Iterator[Hidden]:
    waiting = iter(states)
    for step in script:
        if isinstance(step, Rollback):
            if not window.apply(KvOp("remove", seq=step.seq, p0=step.start)):
                raise WindowError(
                    f"the window of layers {window.first} to {window.last - 1} cannot forget positions, "
                    "as the whole model can"
                )
            continue
        run = window.run_last if last else window.run
        yield run(step.batch, next(waiting))
        advance()
