"""What a model goes through: import as the command line does it, then the use that a daemon makes of it."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from edged.backend.native import NativeWindow, load_window
from edged.backend.window import Batch, Hidden, KvOp, Tokens
from edged.planning.plan import ContextOptions
from edged.serving.tokenizer import Tokenizer
from edged.store import probe, probe_child
from edged.store.catalogue import Catalogue
from edged.store.compose import compose
from edged.store.importer import import_model
from edged.store.manifest import Manifest
from tests.fuzz.forked import Outcome, forked

IMPORT_S = 20.0
USE_S = 30.0
MEGABYTES = 1500

_TEXTS = (
    "",
    "Hello world, how are you? 12345\n\n\tx = 'y'  \r\n",
    "".join(chr(code) for code in range(0x250)),
    "家 μία οικία e\u0301 \ufeff \u2028 \ue000 😀👩‍👩‍👧 \U0010ffff",
    "<s></s><unk><0x41><|im_end|> ▁▁ Ġ",
    " " * 300 + "a" * 300,
)


def survives(path: Path, home: Path, rng: random.Random) -> tuple[Outcome, Outcome | None]:
    """How the import ended, and the use, if the model was taken."""
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()

    def take() -> dict[str, Any]:
        return {"id": import_model(path, Catalogue(home)).id}

    taken = forked(take, IMPORT_S, MEGABYTES)
    if taken.ending != "done":
        return taken, None
    seed = rng.getrandbits(32)
    return taken, forked(lambda: _use(home, taken.answer["id"], seed), USE_S, MEGABYTES)


def probing_in_forks() -> None:
    """Try models in forks of this process, which are much quicker to start, rather than in new ones."""

    def run(
        request: probe.Asked, body: bytes, seconds: float, wanted: Callable[[], None] | None = None
    ) -> tuple[int, bytes, bytes]:
        def work() -> dict[str, Any]:
            return probe_child.answer(dict(request), body)

        outcome = forked(work, min(seconds, IMPORT_S / 2), MEGABYTES)
        match outcome.ending:
            case "done":
                return 0, json.dumps(outcome.answer).encode(), b""
            case "died" if outcome.message in signal.Signals.__members__:
                return -int(signal.Signals[outcome.message]), b"", outcome.said.encode()
            case "hung":
                raise subprocess.TimeoutExpired("trying a model", seconds)
        return 1, b"", (outcome.message or outcome.said).encode()

    probe.run_child = run


def _use(home: Path, model: str, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    catalogue = Catalogue(home)
    manifest = catalogue.get(model)
    assert manifest is not None
    tokenizer = Tokenizer(catalogue.verify(manifest.vocabulary), manifest.name)
    tokens: list[int] = []
    for text in _TEXTS:
        for special in (True, False):
            tokens += tokenizer.encode(text, add_special=special, parse_special=not special)
    for token in range(min(tokenizer.n_vocab, 2000)):
        tokenizer.piece(token)
    tokens = [token for token in tokens if 0 <= token < manifest.n_vocab] or [0]
    rng.shuffle(tokens)
    _run(manifest, catalogue, tokens, rng)
    tokenizer.close()
    return {}


def _run(manifest: Manifest, catalogue: Catalogue, tokens: list[int], rng: random.Random) -> None:
    context = ContextOptions(
        n_ctx=rng.choice([64, 600, 4096]),
        n_seq_max=rng.choice([1, 2, 5]),
        n_ubatch=rng.choice([1, 16, 128]),
        kv_type=rng.choice(["f16", "f16", "q8_0", "f32"]),
        flash_attention=rng.choice(["on", "auto"]),
    )
    if context.kv_type != "q8_0" and rng.random() < 0.6:
        context = context.model_copy(update={"flash_attention": "off"})
    cuts = sorted(rng.sample(manifest.boundaries, min(len(manifest.boundaries), rng.choice([0, 1, 2, 9]))))
    edges = [0, *cuts, manifest.n_layers]
    windows: list[NativeWindow] = []
    rehearsals = probe.Rehearsals()
    try:
        for first, last in pairwise(edges):
            source = compose(manifest, catalogue, first, last)
            rehearsals.rehearse(source, context, n_threads=1)
            windows.append(load_window(source, context, n_threads=1))
        position = 0
        for count in (min(16, context.n_ubatch), 1, 1, min(20, context.n_ubatch)):
            position = _step(windows, tokens, position, count)
        for window in windows:
            window.apply(KvOp("remove", 0, p0=position - 1))
            window.apply(KvOp("copy", 0, target=context.n_seq_max - 1))
            window.apply(KvOp("clear"))
        _step(windows, tokens, 0, 1)
    finally:
        for window in windows:
            window.close()


def _step(windows: list[NativeWindow], tokens: list[int], position: int, count: int) -> int:
    batch = Batch(
        np.zeros(count, np.int32),
        np.arange(position, position + count, dtype=np.int32),
        np.ones(count, np.bool_),
    )
    picked = [tokens[(position + index) % len(tokens)] for index in range(count)]
    state: Tokens | Hidden = np.array(picked, np.int32)
    for window in windows[:-1]:
        state = window.run(batch, state)
    windows[-1].run_last(batch, state)
    return position + count
