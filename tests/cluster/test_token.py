"""Join tokens: their one line of text, and the founder's book of them."""

from __future__ import annotations

import secrets
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.cluster.token import LIFETIME_S, SECRET_BYTES, Token, TokenBook, WrongSecretError, parse
from edged.errors import ClusterError, JoinRefusedError
from tests.cluster.clock import Clock

PIN = "ab" * 32
DEVICE = "0" * 16


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES))
def test_a_token_survives_its_text(pin: bytes, secret: bytes) -> None:
    token = Token(pin.hex(), secret)
    text = str(token)
    assert parse(text) == token
    assert parse(f"  {text.lower()}\r\n") == token
    assert parse(f"{text[:40]}\n   {text[40:]}") == token


@given(st.data())
def test_every_single_slip_is_told_from_a_wrong_secret(data: st.DataObject) -> None:
    text = str(Token(PIN, bytes(range(SECRET_BYTES))))
    at = data.draw(st.integers(len("EDGED1-"), len(text) - 1))
    other = data.draw(st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567-189"))
    if other == text[at]:
        return
    with pytest.raises(JoinRefusedError, match=r"mistyped|incomplete"):
        parse(text[:at] + other + text[at + 1 :])


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    with pytest.raises(JoinRefusedError):
        parse(text)
    with pytest.raises(JoinRefusedError):
        parse("EDGED1-" + text)


def test_a_truncated_token_is_called_incomplete() -> None:
    text = str(Token(PIN, bytes(SECRET_BYTES)))
    with pytest.raises(JoinRefusedError, match="incomplete"):
        parse(text[:60])


def test_the_secret_does_not_show_in_a_log() -> None:
    token = Token(PIN, secrets.token_bytes(SECRET_BYTES))
    assert "secret" not in repr(token)


def test_a_token_is_good_for_one_join(tmp_path: Path) -> None:
    book = TokenBook(tmp_path / "tokens", PIN)
    token = book.new()
    with book.spending(token.secret, DEVICE):
        pass
    with pytest.raises(JoinRefusedError, match="already used"), book.spending(token.secret, DEVICE):
        raise AssertionError("a spent token let somebody in")


def test_a_join_that_fails_leaves_the_token_good(tmp_path: Path) -> None:
    book = TokenBook(tmp_path / "tokens", PIN)
    token = book.new()
    with pytest.raises(ZeroDivisionError), book.spending(token.secret, DEVICE):
        raise ZeroDivisionError
    with book.spending(token.secret, DEVICE):
        pass


def test_wrong_expired_and_spent_are_told_apart_also_after_a_restart(tmp_path: Path) -> None:
    clock = Clock(1e9)
    path = tmp_path / "tokens"
    book = TokenBook(path, PIN, clock)
    spent, old = book.new(), book.new()
    with book.spending(spent.secret, DEVICE):
        pass
    clock.now += LIFETIME_S
    fresh = book.new()
    again = TokenBook(path, PIN, clock)
    with pytest.raises(JoinRefusedError, match="already used"), again.spending(spent.secret, DEVICE):
        pass
    with pytest.raises(JoinRefusedError, match="expired"), again.spending(old.secret, DEVICE):
        pass
    with pytest.raises(WrongSecretError, match="does not know"), again.spending(bytes(20), DEVICE):
        pass
    with again.spending(fresh.secret, DEVICE):
        pass


def test_the_book_is_private_and_holds_no_secret(tmp_path: Path) -> None:
    book = TokenBook(tmp_path / "tokens", PIN)
    token = book.new()
    kept = (tmp_path / "tokens").read_bytes()
    assert stat.S_IMODE((tmp_path / "tokens").stat().st_mode) == 0o600
    assert token.secret not in kept
    assert token.secret.hex().encode() not in kept


def test_a_damaged_book_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_bytes(b"\xc1")
    with pytest.raises(ClusterError, match="tokens is damaged"):
        TokenBook(tmp_path / "tokens", PIN)


def test_long_forgotten_tokens_leave_the_book(tmp_path: Path) -> None:
    clock = Clock(1e9)
    book = TokenBook(tmp_path / "tokens", PIN, clock)
    token = book.new()
    clock.now += 366 * 24 * 3600
    book.new()
    with pytest.raises(WrongSecretError), book.spending(token.secret, DEVICE):
        pass
