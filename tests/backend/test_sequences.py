"""Several sequences in one window, and the operations on them."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from edged.backend.fake import N_VOCAB as FAKE_VOCAB
from edged.backend.fake import FakeWindow
from edged.backend.window import KvOp
from edged.planning.plan import ContextOptions
from tests.backend.chain import Chain, Row
from tests.backend.conftest import MakeChain

Logits = npt.NDArray[np.float32]


@pytest.fixture(params=["fake", pytest.param("native", marks=pytest.mark.model)])
def chain(request: pytest.FixtureRequest, context: ContextOptions) -> Chain:
    if request.param == "fake":
        return Chain([FakeWindow(first, last, 7, context) for first, last in ((0, 2), (2, 3), (3, 7))])
    make_chain: MakeChain = request.getfixturevalue("make_chain")
    return make_chain([0, 11, 30], context)


def text(seq: int, length: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seq).integers(0, FAKE_VOCAB, length)]


def rows(seq: int, tokens: list[int], start: int = 0) -> list[Row]:
    return [(seq, start + i, token) for i, token in enumerate(tokens)]


def alone(chain: Chain, tokens: list[int], first: int) -> Logits:
    """Logits of a sequence fed `first` tokens at once and the others one by one; leaves nothing behind."""
    found = [chain.decode(rows(0, tokens[:first]))]
    found += [chain.decode(rows(0, [token], first + i)) for i, token in enumerate(tokens[first:])]
    chain.apply(KvOp("clear"))
    return np.concatenate(found)


def test_sequences_in_company_equal_each_alone(chain: Chain) -> None:
    texts = [text(seq, length) for seq, length in enumerate((12, 9, 20, 9))]
    firsts = [7, 4, 15, 4]
    expected = [alone(chain, tokens, first) for tokens, first in zip(texts, firsts, strict=True)]

    # prompts in one batch, shuffled among each other, then steps of all four in an odd order
    prompts = [
        rows(seq, tokens[:first]) for seq, (tokens, first) in enumerate(zip(texts, firsts, strict=True))
    ]
    mixed = [row for layer in itertools.zip_longest(*prompts) for row in layer if row is not None]
    found: list[list[Logits]] = [[] for _ in texts]
    for row, logits in zip(mixed, chain.decode(mixed), strict=True):
        found[row[0]].append(logits)
    for step in range(5):
        batch = [rows(seq, [texts[seq][firsts[seq] + step]], firsts[seq] + step)[0] for seq in (2, 0, 3, 1)]
        for row, logits in zip(batch, chain.decode(batch), strict=True):
            found[row[0]].append(logits)
    for seq in range(4):
        assert np.array_equal(np.stack(found[seq]), expected[seq]), f"sequence {seq}"
    assert not np.array_equal(expected[1], expected[3])


def test_only_flagged_rows_come_back_in_batch_order(chain: Chain) -> None:
    batch = rows(3, text(3, 5)) + rows(0, text(0, 4)) + rows(1, text(1, 4))
    every = chain.decode(batch)
    chain.apply(KvOp("clear"))
    flags = [i % 3 == 1 for i in range(len(batch))]
    assert np.array_equal(chain.decode(batch, flags), every[np.array(flags)])


def test_a_batch_without_flags_still_fills_the_cache(chain: Chain) -> None:
    tokens = text(5, 9)
    expected = alone(chain, tokens, 8)[-1:]
    assert chain.decode(rows(0, tokens[:8]), False).shape == (0, expected.shape[1])
    assert np.array_equal(chain.decode(rows(0, tokens[8:], 8)), expected)


def test_an_empty_batch_gives_nothing(chain: Chain) -> None:
    assert chain.decode([]).shape[0] == 0


def test_removed_tokens_were_never_there(chain: Chain) -> None:
    tokens = text(6, 12)
    expected = alone(chain, tokens, 6)
    other = text(7, 5)
    chain.decode(rows(0, tokens[:6]))
    chain.decode(rows(0, other, 6))
    chain.apply(KvOp("remove", seq=0, p0=6))
    again = np.concatenate([chain.decode(rows(0, [t], 6 + i)) for i, t in enumerate(tokens[6:])])
    assert np.array_equal(again, expected[6:])


def test_a_removed_sequence_starts_anew(chain: Chain) -> None:
    tokens = text(6, 8)
    expected = alone(chain, tokens, 4)
    chain.decode(rows(1, text(7, 9)))
    chain.apply(KvOp("remove", seq=1))
    assert np.array_equal(chain.decode(rows(1, tokens[:4])), expected[:4])


def test_a_copy_goes_its_own_way(chain: Chain) -> None:
    tokens, other = text(8, 10), text(9, 4)
    expected = alone(chain, tokens, 6)
    expected_other = alone(chain, tokens[:6] + other, 6)
    chain.decode(rows(3, text(1, 3)))  # what the target held before is gone
    chain.decode(rows(1, tokens[:6]))
    chain.apply(KvOp("copy", seq=1, target=3))
    for i in range(4):
        both = chain.decode([(3, 6 + i, other[i]), (1, 6 + i, tokens[6 + i])])
        assert np.array_equal(both[0], expected_other[6 + i])
        assert np.array_equal(both[1], expected[6 + i])


def test_a_copy_outlives_its_origin(chain: Chain) -> None:
    tokens = text(8, 10)
    expected = alone(chain, tokens, 6)
    chain.decode(rows(0, tokens[:6]))
    chain.apply(KvOp("copy", seq=0, target=2))
    chain.apply(KvOp("copy", seq=2, target=1))
    chain.apply(KvOp("remove", seq=0))
    chain.decode(rows(0, text(4, 9)))
    for i, token in enumerate(tokens[6:]):
        assert np.array_equal(chain.decode([(1, 6 + i, token)])[0], expected[6 + i])


def test_keep_forgets_the_others(chain: Chain) -> None:
    tokens = text(8, 10)
    expected = alone(chain, tokens, 6)
    for seq in range(4):
        chain.decode(rows(seq, tokens[:6]))
    chain.apply(KvOp("keep", seq=2))
    assert np.array_equal(chain.decode(rows(2, tokens[6:7], 6)), expected[6:7])
    for seq in (0, 1, 3):
        assert np.array_equal(chain.decode(rows(seq, tokens[:6])), expected[:6])
