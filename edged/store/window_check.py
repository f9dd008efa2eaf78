"""Whether the windows of a model give what the whole model gives, for architectures that no rule knows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from edged.backend.native import load_window
from edged.backend.window import Batch, Hidden, Logits, Tokens
from edged.errors import WindowError
from edged.planning.plan import ContextOptions
from edged.store.catalogue import Catalogue
from edged.store.compose import compose
from edged.store.manifest import Manifest

_CHUNKS = ((0, 4), (4, 5), (5, 6))  # positions: a prompt, and single tokens after it
_OPTIONS = ContextOptions(n_ctx=32, n_seq_max=1, n_ubatch=16, flash_attention="off")


def why_not_in_windows(manifest: Manifest, catalogue: Catalogue, memory: int) -> str:
    """What speaks against cutting this model; empty where nothing does, or where it does not fit into memory.

    Runs a few tokens through the whole model and through windows at its first, middle and last boundary, and
    wants the same logits bit for bit. May end the process, as libllama does where an assertion fails.
    """
    boundaries = manifest.boundaries
    weights = sum(part.weight_bytes for part in manifest.parts)
    if not boundaries or weights > memory:
        return ""
    n_tokens = _CHUNKS[-1][1]
    tokens = np.random.default_rng(0).integers(0, manifest.n_vocab, n_tokens, np.int32)
    whole = _logits(manifest, catalogue, [0, manifest.n_layers], tokens)
    cuts = sorted({boundaries[0], boundaries[len(boundaries) // 2], boundaries[-1]})
    try:
        windows = _logits(manifest, catalogue, [0, *cuts, manifest.n_layers], tokens)
    except WindowError as error:
        return f"its layers do not run on their own: {error.message}"
    if np.array_equal(whole, windows, equal_nan=True):
        return ""
    return f"its windows differ from the whole model (by {np.abs(whole - windows).max():.3g})"


def _logits(manifest: Manifest, catalogue: Catalogue, edges: list[int], tokens: Tokens) -> Logits:
    """Logits of every token (n_tokens, n_vocab), with one window in memory at a time."""
    states: list[Tokens | Hidden] = [tokens[start:end] for start, end in _CHUNKS]
    for first, last in pairwise(edges):
        window = load_window(compose(manifest, catalogue, first, last), _OPTIONS, n_threads=1)
        try:
            run = window.run_last if last == manifest.n_layers else window.run
            states = [run(_batch(*chunk), state) for chunk, state in zip(_CHUNKS, states, strict=True)]
        finally:
            window.close()
    return np.concatenate(states)


def _batch(start: int, end: int) -> Batch:
    count = end - start
    positions = np.arange(start, end, dtype=np.int32)
    return Batch(np.zeros(count, np.int32), positions, np.ones(count, np.bool_))
