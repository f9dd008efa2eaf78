"""Windows against the whole model in llama-cpp-python: the logits are equal bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edged.planning.plan import ContextOptions
from tests.backend.chain import Row
from tests.backend.conftest import THREADS, MakeChain
from tests.backend.whole_model import WholeModel

pytestmark = pytest.mark.model

PROMPT = [int(token) for token in np.random.default_rng(7).integers(0, 49152, 83)]
CUTS = [[0, 30], [0, 13, 30], [0, 9, 21, 30], [0, 1, 2, 17, 29, 30]]


def prompt(seq: int, tokens: list[int], start: int = 0) -> list[Row]:
    return [(seq, start + i, token) for i, token in enumerate(tokens)]


def reference(path: Path, context: ContextOptions) -> WholeModel:
    return WholeModel(
        path,
        n_ctx=context.n_ctx,
        n_seq_max=context.n_seq_max,
        n_ubatch=context.n_ubatch,
        n_threads=THREADS,
        kv_type=context.kv_type,
        flash_attention=context.flash_attention,
    )


@pytest.mark.parametrize("bounds", CUTS, ids=lambda bounds: f"{len(bounds) - 1}-windows")
def test_prefill_in_chunks_and_greedy_steps(
    bounds: list[int], make_chain: MakeChain, model_path: Path, context: ContextOptions
) -> None:
    chain = make_chain(bounds, context)
    whole = reference(model_path, context)
    rows = prompt(0, PROMPT)
    for start in range(0, len(rows), context.n_ubatch):
        chunk = rows[start : start + context.n_ubatch]
        expected, found = whole.decode(chunk), chain.decode(chunk)
        assert found.shape == (len(chunk), 49152)
        assert np.abs(found - expected).max() == 0
    for step in range(16):
        row = (0, len(rows) + step, int(expected[-1].argmax()))
        expected, found = whole.decode([row]), chain.decode([row])
        assert np.abs(found - expected).max() == 0
    whole.close()


@pytest.mark.parametrize(
    "change",
    [
        {"kv_type": "q8_0", "flash_attention": "on"},
        {"kv_type": "f32", "flash_attention": "off"},
        {"n_ctx": 640},  # beyond 512 cells flash attention goes another way
    ],
    ids=["q8_0", "f32-without-flash", "long"],
)
def test_other_contexts(
    change: dict[str, object], make_chain: MakeChain, model_path: Path, context: ContextOptions
) -> None:
    options = ContextOptions.model_validate(context.model_dump() | {"n_seq_max": 1, "n_ubatch": 256} | change)
    chain = make_chain([0, 13, 30], options)
    whole = reference(model_path, options)
    tokens = (PROMPT * 8)[: options.n_ctx - 20]
    rows = prompt(0, tokens)
    for start in range(0, len(rows), options.n_ubatch):
        chunk = rows[start : start + options.n_ubatch]
        flags = [row == chunk[-1] for row in chunk]
        expected, found = whole.decode(chunk, last_only=True), chain.decode(chunk, flags)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() == 0
    for step in range(16):
        row = (0, len(rows) + step, int(expected[-1].argmax()))
        expected, found = whole.decode([row]), chain.decode([row])
        assert np.abs(found - expected).max() == 0
    whole.close()
