"""The join token: one line that says which cluster to trust and proves the right to join it, once.

`EDGED1-<hash of the authority>-<secret>-<checksum>`, all in base32, so it survives being read out, typed in
lower case or wrapped by a terminal. The checksum tells a slip of the finger from a wrong secret.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from edged.documents import Document
from edged.errors import ClusterError, DocumentError, JoinRefusedError
from edged.private_file import write_private

PREFIX = "EDGED1"
SECRET_BYTES = 20  # 160 bits: nobody guesses it, and base32 needs no padding
CHECKSUM_CHARS = 6  # 30 bits
LIFETIME_S = 24 * 3600
REMEMBER_S = 30 * 24 * 3600  # how long a spent or expired token is still called so, rather than wrong
MAX_REMEMBERED = 1000


@dataclass(frozen=True)
class Token:
    """`fingerprint` pins the authority (64 hex digits); `secret` is good for one join."""

    fingerprint: str
    secret: bytes = field(repr=False)

    def __str__(self) -> str:
        body = f"{PREFIX}-{_base32(bytes.fromhex(self.fingerprint))}-{_base32(self.secret)}"
        return f"{body}-{_checksum(body)}"


def parse(text: str) -> Token:
    """Reads a token as people paste it. Raises JoinRefusedError if it is incomplete or mistyped."""
    line = "".join(text.split()).upper()
    parts = line.split("-")
    if parts[0] != PREFIX:
        raise JoinRefusedError(f"this is not a join token: one begins with {PREFIX}-")
    if len(parts) != 4 or not all(parts):
        raise JoinRefusedError("the join token is incomplete: copy the whole line that `edged token` printed")
    body, checksum = line.rsplit("-", 1)
    try:
        pin, secret = _unbase32(parts[1]), _unbase32(parts[2])
    except (binascii.Error, ValueError):
        raise JoinRefusedError("the join token is mistyped: it holds a character that no token has") from None
    if _checksum(body) != checksum or len(pin) != 32 or len(secret) != SECRET_BYTES:
        raise JoinRefusedError("the join token is mistyped: its checksum does not match; copy it again")
    return Token(pin.hex(), secret)


class TokenEntry(Document):
    """One token that was handed out. The secret itself is not kept."""

    secret_sha256: str
    expires: float  # Unix seconds
    spent_by: str | None = None  # device id


class TokenLedger(Document):
    entries: tuple[TokenEntry, ...] = ()


class TokenBook:
    """The founder's tokens, kept over restarts. Safe to use from several threads."""

    def __init__(self, path: Path, fingerprint: str, clock: Callable[[], float] = time.time) -> None:
        """Raises ClusterError if the file at `path` is damaged."""
        self._path = path
        self._fingerprint = fingerprint
        self._clock = clock
        self._lock = threading.Lock()
        try:
            self._entries = TokenLedger.unpack(path.read_bytes()).entries
        except FileNotFoundError:
            self._entries = ()
        except (DocumentError, OSError):
            raise ClusterError(f"{path} is damaged: remove it (tokens not yet used become void)") from None

    def new(self, lifetime_s: float = LIFETIME_S) -> Token:
        """A fresh token, valid for one join within `lifetime_s` seconds."""
        token = Token(self._fingerprint, secrets.token_bytes(SECRET_BYTES))
        entry = TokenEntry(secret_sha256=_hash(token.secret), expires=self._clock() + lifetime_s)
        with self._lock:
            self._save((*self._entries, entry))
        return token

    @contextmanager
    def spending(self, secret: bytes, device: str) -> Iterator[None]:
        """Runs its body if the token is good, then marks it as used by `device`, on disk too.

        A body that raises leaves the token unspent. Raises JoinRefusedError: wrong, already used, or expired.
        """
        wanted = _hash(secret)
        with self._lock:
            found: TokenEntry | None = None
            for entry in self._entries:  # all of them: the time taken says nothing about where one matched
                if hmac.compare_digest(entry.secret_sha256, wanted):
                    found = entry
            if found is None:
                raise WrongSecretError(
                    "the founder does not know this token: make a new one there with `edged token`"
                )
            if found.spent_by is not None:
                raise JoinRefusedError("this token was already used: make a new one with `edged token`")
            if self._clock() >= found.expires:
                raise JoinRefusedError("this token has expired: make a new one with `edged token`")
            yield
            spent = found.model_copy(update={"spent_by": device})
            self._save(tuple(spent if entry is found else entry for entry in self._entries))

    def _save(self, entries: tuple[TokenEntry, ...]) -> None:
        oldest = self._clock() - REMEMBER_S
        kept = tuple(entry for entry in entries if entry.expires > oldest)[-MAX_REMEMBERED:]
        write_private(self._path, TokenLedger(entries=kept).pack())
        self._entries = kept


class WrongSecretError(JoinRefusedError):
    """A guess: what the rate limit counts. Travels as its parent's code."""


def _hash(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()


def _base32(body: bytes) -> str:
    return base64.b32encode(body).decode().rstrip("=")


def _unbase32(text: str) -> bytes:
    return base64.b32decode(text + "=" * (-len(text) % 8))


def _checksum(body: str) -> str:
    return _base32(hashlib.sha256(body.encode()).digest())[:CHECKSUM_CHARS]
