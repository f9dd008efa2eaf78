"""Faults of a vocabulary at which libllama would end the process (an assertion, or an exception in C++), or
never come back: some of them at once, some only for a certain text.
"""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as llama

from edged.errors import BrokenModelError, shown
from edged.store.charsmap import charsmap_fault
from edged.store.gguf_file import Pair, ValueType, read_gguf

_LONGEST_WORD = 4096  # bytes of one token; a sane vocabulary's longest has some hundred
_LONGEST_IN_TREE = 1024  # where libllama keeps the tokens in a tree that it walks down and frees recursively
_DNA_MARKER = b"\xee\x80\x80"  # libllama cuts it off the tokens of `hybriddna`


def check_vocabulary(path: Path, name: str) -> None:
    """Raises BrokenModelError where loading `path`, of the model `name`, or encoding with it would abort."""
    pairs = read_gguf(path).pairs
    tokens = pairs.get("tokenizer.ggml.tokens")
    if tokens is None or tokens.element_type is not ValueType.STRING or tokens.count == 0:
        raise BrokenModelError(f"{name} has no vocabulary: import a GGUF of a text model")
    words = _words(tokens)
    known = set(words)
    if len(known) != len(words):
        twice = Counter(words).most_common(1)[0][0]
        raise BrokenModelError(f"{name}: the token {_quoted(twice)} is in the vocabulary twice")
    kind = pairs.get("tokenizer.ggml.model")
    text = kind.value() if kind is not None and kind.value_type is ValueType.STRING else ""
    limit = _LONGEST_IN_TREE if text in ("t5", "rwkv", "plamo2") else _LONGEST_WORD
    if (longest := max(map(len, words))) > limit:
        raise BrokenModelError(f"{name}: its vocabulary has a token of {longest} bytes")
    fault = None
    match text:
        case "llama":
            missing = [byte for byte in range(256) if not _spells(known, byte)]
            fault = f"the vocabulary has no token for the byte 0x{missing[0]:02X}" if missing else None
        case "rwkv":
            fault = _dead_end(words)
        case "plamo2":
            fault = next((f"the token {_quoted(word)} is not text" for word in words if _no_text(word)), None)
        case "hybriddna" if _DNA_MARKER in known:
            fault = f"the token {_quoted(_DNA_MARKER)} stands for nothing"
        case "t5":
            charsmap = pairs.get("tokenizer.ggml.precompiled_charsmap")
            fault = None if charsmap is None else charsmap_fault(charsmap.raw)
    if fault is not None:
        raise BrokenModelError(f"{name}: {fault}")


def check_loaded(vocabulary: Any, name: str) -> None:
    """Of the vocabulary that libllama made of it. Raises BrokenModelError where edged could not use it."""
    if llama.llama_vocab_type(vocabulary) == llama.LLAMA_VOCAB_TYPE_NONE:
        raise BrokenModelError(f"{name} has no vocabulary: import a GGUF of a text model")
    known = range(llama.llama_vocab_n_tokens(vocabulary))
    for wanted, token in (
        (llama.llama_vocab_get_add_bos(vocabulary), llama.llama_vocab_bos(vocabulary)),
        (llama.llama_vocab_get_add_eos(vocabulary), llama.llama_vocab_eos(vocabulary)),
    ):
        if wanted and token not in known:
            raise BrokenModelError(f"{name} wants a begin or end token that its vocabulary does not have")


def _spells(known: set[bytes], byte: int) -> bool:
    """Whether libllama finds a token for a byte; it takes the text that is just a zero for an empty one."""
    return b"<0x%02X>" % byte in known or (byte != 0 and bytes([byte]) in known)


def _dead_end(words: list[bytes]) -> str | None:
    """RWKV's tokenizer begins a token with a byte and must be able to end it there, or it never ends."""
    spelt = [_unescaped(word) for word in words]
    alone = {word for word in spelt if len(word) == 1}
    for word in spelt:
        if word and word[:1] not in alone:
            return f"the vocabulary has no token for the byte 0x{word[0]:02X}, with which others begin"
    return None


def _unescaped(word: bytes) -> bytes:
    r"""As libllama reads RWKV's tokens: `\t`, `\n`, `\r`, `\x41`, and any character after a backslash."""
    plain = bytearray()
    at = 0
    while at < len(word):
        if word[at] != ord("\\"):
            plain.append(word[at])
            at += 1
            continue
        escaped = word[at + 1 : at + 2]
        if escaped == b"x":
            digits = word[at + 2 : at + 4]
            if len(digits) == 2:
                high, low = (digit - (87 if digit >= ord("a") else 48) for digit in digits)
                plain.append((high * 16 + low) & 0xFF)
            at += 4
        else:
            plain += {b"t": b"\t", b"n": b"\n", b"r": b"\r"}.get(escaped, escaped)
            at += 2
    return bytes(plain)


def _no_text(word: bytes) -> bool:
    try:
        word.decode()
    except UnicodeDecodeError:
        return True
    return False


def _quoted(word: bytes) -> str:
    return repr(shown(word.decode(errors="replace")))


def _words(pair: Pair) -> list[bytes]:
    """Token texts as raw bytes (not all are UTF-8), empty ones named as libllama names them."""
    raw, words, at = pair.raw, [], 0
    for index in range(pair.count):
        (length,) = struct.unpack_from("<Q", raw, at)
        word = raw[at + 8 : at + 8 + length]
        words.append(word or b"[EMPTY_%d]" % index)
        at += 8 + length
    return words
