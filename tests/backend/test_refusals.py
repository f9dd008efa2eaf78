"""What a window must refuse instead of reaching an assertion in llama.cpp, and goes on working after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edged.backend.fake import N_VOCAB, WIDTH, FakeWindow
from edged.backend.native import load_window
from edged.backend.source import WindowSource
from edged.backend.window import Batch, KvOp, Window
from edged.errors import WindowError
from edged.planning.plan import ContextOptions
from tests.backend.chain import batch_of
from tests.backend.conftest import THREADS

Pair = tuple[Window, Window, int, int]  # the beginning, the end, n_vocab, width


@pytest.fixture(scope="module")
def small() -> ContextOptions:
    return ContextOptions(n_ctx=48, n_seq_max=2, n_ubatch=16)


@pytest.fixture(scope="module")
def native_pair(source_of: Callable[[int, int], WindowSource], small: ContextOptions) -> Any:
    head, tail = (load_window(source_of(a, b), small, THREADS) for a, b in ((0, 1), (29, 30)))
    yield head, tail, 49152, 576
    head.close()
    tail.close()


@pytest.fixture(params=["fake", pytest.param("native", marks=pytest.mark.model)])
def pair(request: pytest.FixtureRequest, small: ContextOptions) -> Pair:
    if request.param == "fake":
        return FakeWindow(0, 1, 3, small), FakeWindow(2, 3, 3, small), N_VOCAB, WIDTH
    found: Pair = request.getfixturevalue("native_pair")
    for window in found[:2]:
        window.apply(KvOp("clear"))
    return found


def i32(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int32)


GOOD = Batch(i32(0, 0), i32(0, 1), np.array([True, True]))
TOKENS = i32(1, 2)

BAD_BATCHES = {
    "negative token": (GOOD, i32(1, -1), "token -1"),
    "token beyond the vocabulary": (GOOD, i32(1, 1 << 30), "token 1073741824"),
    "too few tokens": (GOOD, i32(1), "one token per row"),
    "int64 tokens": (GOOD, np.array([1, 2]), "inputs must be"),
    "two-dimensional tokens": (GOOD, np.zeros((2, 1), np.int32), "inputs must be"),
    "hidden states for tokens": (GOOD, np.zeros((2, 8), np.float32), "inputs must be"),
    "a list": (GOOD, [1, 2], "numpy arrays"),
    "None": (GOOD, None, "numpy arrays"),
    "strided": (GOOD, i32(1, 9, 2, 9)[::2], "inputs must be"),
    "negative sequence": (replace(GOOD, seq_ids=i32(0, -1)), TOKENS, "sequence -1"),
    "sequence beyond the last": (replace(GOOD, seq_ids=i32(2, 2)), TOKENS, "sequence 2"),
    "int64 sequences": (replace(GOOD, seq_ids=np.array([0, 0])), TOKENS, "seq_ids must be"),
    "float positions": (replace(GOOD, positions=np.array([0.0, 1.0])), TOKENS, "positions must be"),
    "int outputs": (replace(GOOD, outputs=i32(1, 1)), TOKENS, "outputs must be"),
    "too few positions": (replace(GOOD, positions=i32(0)), TOKENS, "as many positions"),
    "too few outputs": (replace(GOOD, outputs=np.array([True])), TOKENS, "as many positions"),
    "a gap": (replace(GOOD, positions=i32(0, 2)), TOKENS, "goes on at position 1, not 2"),
    "late start": (replace(GOOD, positions=i32(5, 6)), TOKENS, "goes on at position 0, not 5"),
    "negative position": (replace(GOOD, positions=i32(-1, 0)), TOKENS, "not -1"),
    "the same position twice": (replace(GOOD, positions=i32(0, 0)), TOKENS, "goes on at position 1, not 0"),
    "backwards": (replace(GOOD, positions=i32(1, 0)), TOKENS, "goes on at position 0, not 1"),
    "too many tokens": (batch_of([(0, i, 0) for i in range(17)]), i32(*range(17)), "at most 16"),
}


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_bad_batches(pair: Pair, name: str) -> None:
    head = pair[0]
    batch, inputs, message = BAD_BATCHES[name]
    before = head.run(GOOD, TOKENS)
    head.apply(KvOp("clear"))
    with pytest.raises(WindowError, match=message):
        head.run(batch, inputs)  # type: ignore[arg-type]
    assert np.array_equal(head.run(GOOD, TOKENS), before)


@pytest.mark.parametrize(
    ("shape", "dtype", "value", "message"),
    [
        ((2, -1), np.float32, 0, "values per token"),
        ((2, 1), np.float32, 0, "values per token"),
        ((1, 0), np.float32, 0, "one hidden state per row"),
        ((2, 0), np.float64, 0, "inputs must be"),
        ((2, 0), np.float32, np.nan, "not finite"),
        ((2, 0), np.float32, -np.inf, "not finite"),
    ],
)
def test_bad_states(pair: Pair, shape: tuple[int, int], dtype: type, value: float, message: str) -> None:
    _, tail, n_vocab, width = pair
    columns = shape[1] if shape[1] > 0 else width + shape[1]
    states: np.ndarray[Any, Any] = np.zeros((shape[0], columns), dtype)
    states[-1, -1] = value
    with pytest.raises(WindowError, match=message):
        tail.run_last(GOOD, states)
    assert tail.run_last(GOOD, np.ones((2, width), np.float32)).shape == (2, n_vocab)


def test_the_wrong_kind_of_run(pair: Pair) -> None:
    head, tail, _, width = pair
    with pytest.raises(WindowError, match="use run"):
        head.run_last(GOOD, TOKENS)
    with pytest.raises(WindowError, match="use run_last"):
        tail.run(GOOD, np.zeros((2, width), np.float32))


def test_a_full_sequence(pair: Pair) -> None:
    head = pair[0]
    for start in (0, 16, 32):
        head.run(batch_of([(0, start + i, 0) for i in range(16)]), np.zeros(16, np.int32))
    with pytest.raises(WindowError, match="sequence 0 is full: the context has 48 positions"):
        head.run(batch_of([(0, 48, 0)]), i32(0))
    head.run(replace(GOOD, seq_ids=i32(1, 1)), TOKENS)
    head.apply(KvOp("remove", seq=0, p0=40))
    head.run(batch_of([(0, 40, 0)]), i32(0))


@pytest.mark.parametrize(
    "op",
    [
        KvOp("remove", seq=2),
        KvOp("remove", seq=-1),
        KvOp("remove", p0=-1),
        KvOp("remove", p0=3, p1=2),
        KvOp("remove", p0=3, p1=-2),
        KvOp("copy", seq=0, target=2),
        KvOp("copy", seq=-1, target=0),
        KvOp("keep", seq=2),
        KvOp("drop"),  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_bad_operations(pair: Pair, op: KvOp) -> None:
    head = pair[0]
    head.run(GOOD, TOKENS)
    with pytest.raises(WindowError):
        head.apply(op)
    head.run(batch_of([(0, 2, 0)]), i32(3))


@pytest.mark.parametrize(
    "op",
    [KvOp("remove", p0=7), KvOp("remove", p0=1, p1=1), KvOp("copy", seq=0, target=0), KvOp("remove", seq=1)],
    ids=str,
)
def test_operations_that_change_nothing(pair: Pair, op: KvOp) -> None:
    head = pair[0]
    head.run(GOOD, TOKENS)
    expected = head.run(batch_of([(0, 2, 0)]), i32(3))
    head.apply(KvOp("clear"))
    head.run(GOOD, TOKENS)
    assert head.apply(op)
    assert np.array_equal(head.run(batch_of([(0, 2, 0)]), i32(3)), expected)


def test_a_closed_window(small: ContextOptions, source_of: Callable[[int, int], WindowSource]) -> None:
    windows: list[Window] = [FakeWindow(0, 1, 3, small), load_window(source_of(0, 1), small, THREADS)]
    for window in windows:
        window.close()
        window.close()
        with pytest.raises(WindowError, match="closed"):
            window.run(GOOD, TOKENS)
        with pytest.raises(WindowError, match="closed"):
            window.apply(KvOp("clear"))


def test_a_fake_of_a_recurrent_model_cannot_roll_back(small: ContextOptions) -> None:
    window = FakeWindow(0, 1, 3, small, recurrent=True)
    window.run(GOOD, TOKENS)
    assert not window.apply(KvOp("remove", p0=1))
    assert window.apply(KvOp("remove"))
    window.run(GOOD, TOKENS)
