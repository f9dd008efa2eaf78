from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.cli.terminal import Cleaner, clean
from tests.cli.door import ATTACK

TRICKS = [
    "\x1b[31m",
    "\x1b]0;title\x07",
    "\x1b]8;;http://x\x1b\\",
    "\x9b2J",
    "\x1bc",
    "\x1b(B",
    "\x1bP1$r\x9c",
]
texts = st.lists(
    st.one_of(st.sampled_from([*TRICKS, "\x1b", "\n", "\r\n", "ä", "[31m"]), st.text(max_size=5))
)


@pytest.mark.parametrize("trick", TRICKS)
def test_a_sequence_goes_as_a_whole(trick: str) -> None:
    assert clean(f"a{trick}b") == "ab"


def test_text_stays() -> None:
    text = "Grüße, 世界 👩‍👩‍👧!\n\tcode [31m [1;2H"
    assert clean(text) == text


@given(texts)
def test_nothing_that_steers_a_terminal_gets_through(pieces: list[str]) -> None:
    cleaner = Cleaner()
    shown = "".join(cleaner.feed(piece) for piece in pieces) + cleaner.finish()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)


@given(texts, st.integers(1, 3))
def test_pieces_give_what_the_whole_gives(pieces: list[str], size: int) -> None:
    whole = "".join(pieces)
    cleaner = Cleaner()
    letters = [whole[at : at + size] for at in range(0, len(whole), size)]
    assert "".join(cleaner.feed(piece) for piece in letters) + cleaner.finish() == clean(whole)


def test_a_sequence_that_never_ends_swallows_little() -> None:
    cleaner = Cleaner()
    shown = cleaner.feed("\x1b]0;") + "".join(cleaner.feed("x" * 10) for _ in range(100)) + cleaner.finish()
    assert shown.count("x") == 1000


def test_an_attack_is_defused() -> None:
    assert clean(ATTACK) == "saferedblinkover"
