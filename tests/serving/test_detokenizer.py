from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edged.serving.detokenizer import Detokenizer
from edged.serving.tokenizer import Tokenizer


def pushed(pieces: list[bytes], stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    detokenizer = Detokenizer(stop)
    texts = [detokenizer.push(piece) for piece in pieces]
    return [*texts, detokenizer.flush()], detokenizer.stopped


def test_emoji_in_byte_tokens_comes_whole(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("Hi 👨‍👩‍👧 你", add_special=False, parse_special=False)
    pieces = [tokenizer.piece(token) for token in tokens]
    assert any(piece.decode("utf-8", errors="ignore").encode() != piece for piece in pieces)
    texts, _ = pushed(pieces)
    assert "".join(texts) == "Hi 👨‍👩‍👧 你"
    assert not any("\N{REPLACEMENT CHARACTER}" in text for text in texts)


def test_a_cut_character_waits_and_is_replaced_only_at_the_end() -> None:
    emoji = "🙂".encode()
    assert pushed([b"a" + emoji[:2], emoji[2:], b"b"]) == (["a", "🙂", "b", ""], False)
    assert pushed([b"a" + emoji[:3]]) == (["a", "\N{REPLACEMENT CHARACTER}"], False)
    assert pushed([b"\xff", b"x"]) == (["\N{REPLACEMENT CHARACTER}", "x", ""], False)


def test_stop_string_across_tokens() -> None:
    assert pushed([b"one ", b"E", b"N", b"D", b" two"], ("END",)) == (["one ", "", "", "", "", ""], True)
    assert pushed([b"one E", b"N", b"d"], ("END",)) == (["one ", "", "ENd", ""], False)
    assert pushed([b"xEN"], ("END",)) == (["x", "EN"], False)
    assert pushed([b"aab"], ("ab",)) == (["a", ""], True)


def test_earliest_of_several_stop_strings_wins() -> None:
    assert pushed([b"x<|", b"b|y"], ("|y", "<|b|z")) == (["x", "<|b", ""], True)
    assert pushed([b"abcd"], ("cd", "bc")) == (["a", ""], True)


def test_stop_string_of_cut_characters() -> None:
    assert pushed([b"a\xf0\x9f", b"\x99\x82b"], ("🙂",)) == (["a", "", ""], True)


@given(
    st.text("abc🙂", max_size=40), st.lists(st.text("abc🙂", min_size=1, max_size=4), max_size=3), st.data()
)
def test_any_cut_gives_the_text_before_the_first_stop_string(
    text: str, stop: list[str], data: st.DataObject
) -> None:
    body = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=8)))
    pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    texts, stopped = pushed(pieces, tuple(stop))
    ends = [s for s in stop if s in text]
    shown = "".join(texts)
    assert stopped == bool(ends)
    if not stopped:
        assert shown == text
    else:
        assert text.startswith(shown)
        assert not any(s in shown for s in stop)
        assert any(text.startswith(s, len(shown)) for s in stop)
