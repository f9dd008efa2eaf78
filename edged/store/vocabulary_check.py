"""Faults of a vocabulary at which libllama would end the process (an assertion, or an exception in C++)."""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as llama

from edged.errors import BrokenModelError
from edged.store.gguf_file import Pair, ValueType, read_gguf

_SENTENCEPIECE = "llama"  # the kind of tokenizer that spells unknown text in byte tokens and insists on them


def check_vocabulary(path: Path, name: str) -> None:
    """Raises BrokenModelError where loading `path`, of the model `name`, or encoding with it would abort."""
    pairs = read_gguf(path).pairs
    tokens = pairs.get("tokenizer.ggml.tokens")
    if tokens is None or tokens.element_type is not ValueType.STRING or tokens.count == 0:
        raise BrokenModelError(f"{name} has no vocabulary: import a GGUF of a text model")
    words = _words(tokens)
    known = set(words)
    if len(known) != len(words):
        twice = Counter(words).most_common(1)[0][0].decode(errors="replace")
        raise BrokenModelError(f"{name}: the token {twice!r} is in the vocabulary twice")
    kind = pairs.get("tokenizer.ggml.model")
    if kind is not None and kind.value() == _SENTENCEPIECE:
        missing = [byte for byte in range(256) if not _spells(known, byte)]
        if missing:
            raise BrokenModelError(f"{name}: the vocabulary has no token for the byte 0x{missing[0]:02X}")


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
    return b"<0x%02X>" % byte in known or bytes([byte]) in known


def _words(pair: Pair) -> list[bytes]:
    """Token texts as raw bytes (not all are UTF-8), empty ones named as libllama names them."""
    raw, words, at = pair.raw, [], 0
    for index in range(pair.count):
        (length,) = struct.unpack_from("<Q", raw, at)
        word = raw[at + 8 : at + 8 + length]
        words.append(word or b"[EMPTY_%d]" % index)
        at += 8 + length
    return words
