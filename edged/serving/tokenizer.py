"""Text to tokens and back, by libllama's own tokenizer on a model file without tensors."""

from __future__ import annotations

import ctypes
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import llama_cpp.llama_cpp as llama
import numpy as np

from edged.errors import BrokenModelError, InvalidRequestError, ModelError
from edged.store.vocabulary_check import check_loaded, check_vocabulary

MAX_TEXT_BYTES = 64 * 2**20
"""Longest text that is tokenized at all; the largest context of today is below 10 MB of text."""

# libllama splits text with std::regex, which recurses for every character of a run without (or of nothing
# but) white space: 321 bytes of stack per character were measured, so 26,000 letters overflow a usual stack
# of 8 MiB and end the process. Text with long runs is tokenized on a thread with a stack of its own.
_LONG_RUN = re.compile(r"\S{1000}|\s{1000}")
_RUN_LIMIT = 100_000  # a longer run is cut here; no language has such words
_RUNS = re.compile(rf"\S{{1,{_RUN_LIMIT}}}|\s{{1,{_RUN_LIMIT}}}")
_BIG_STACK_BYTES = 256 * 2**20  # address space only: pages are taken as they are touched
_stack_size_lock = threading.Lock()  # threading.stack_size is a setting of the whole process

_LOG = logging.getLogger("llama-cpp-python")


class Tokenizer:
    """Loads the `vocab` part of a model. Thread safe.

    Raises BrokenModelError if the file has no usable vocabulary; every method raises ModelError once closed.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        """name: what errors call the model (default: the file's name)."""
        name = name or path.name
        check_vocabulary(path, name)
        if _LOG.level == logging.NOTSET:
            _LOG.setLevel(logging.CRITICAL)  # libllama's own lines would go to the user's terminal
        llama.llama_backend_init()
        params = llama.llama_model_default_params()
        params.vocab_only = True
        self._model = llama.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise BrokenModelError(f"{name}: libllama cannot load this vocabulary")
        self._vocab = llama.llama_model_get_vocab(self._model)
        self._users = 0
        self._idle = threading.Condition()
        self._closed = False
        try:
            self._read_fixed_facts(name)
        except BaseException:
            self.close()
            raise

    def _read_fixed_facts(self, name: str) -> None:
        vocab = self._vocab
        check_loaded(vocab, name)
        self._splits_by_regex = llama.llama_vocab_type(vocab) == llama.LLAMA_VOCAB_TYPE_BPE
        self.n_vocab = int(llama.llama_vocab_n_tokens(vocab))
        self.bos = self._known(llama.llama_vocab_bos(vocab))
        self.eos = self._known(llama.llama_vocab_eos(vocab))
        self.end_tokens = frozenset(t for t in range(self.n_vocab) if llama.llama_vocab_is_eog(vocab, t))
        self.adds_bos = bool(llama.llama_vocab_get_add_bos(vocab))
        self.bos_text = "" if self.bos is None else self._text(self.bos)
        self.eos_text = "" if self.eos is None else self._text(self.eos)
        template = llama.llama_model_chat_template(self._model, None)
        self.chat_template = None if template is None else template.decode("utf-8", errors="replace")

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Tokens of `text`.

        add_special:   add the model's begin (and end) token where it is configured to have one.
        parse_special: text such as `<|im_end|>` becomes the control token of that name.
        Raises InvalidRequestError for a text that is not valid Unicode or too long.
        """
        try:
            body = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidRequestError(f"the text has half a surrogate pair at {error.start}") from None
        if len(body) > MAX_TEXT_BYTES:
            raise InvalidRequestError(f"a text of {len(body)} bytes is too long: {MAX_TEXT_BYTES} at most")
        with self._open():
            if not self._splits_by_regex or _LONG_RUN.search(text) is None:
                return self._encode(body, add_special, parse_special)
            return self._encode_with_big_stack(_in_pieces(text), add_special, parse_special)

    def _encode(self, body: bytes, add_special: bool, parse_special: bool) -> list[int]:
        room = len(body) + 8
        while True:
            tokens = np.empty(room, np.int32)
            out = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
            n = llama.llama_tokenize(self._vocab, body, len(body), out, room, add_special, parse_special)
            if n >= 0:
                return [int(token) for token in tokens[:n]]
            room = -n

    def _encode_with_big_stack(self, pieces: list[str], add_special: bool, parse_special: bool) -> list[int]:
        tokens: list[int] = []

        def work() -> None:
            for index, piece in enumerate(pieces):
                tokens.extend(self._encode(piece.encode("utf-8"), add_special and index == 0, parse_special))

        thread = threading.Thread(target=work, name="edged-tokenizer", daemon=False)
        with _stack_size_lock:
            before = threading.stack_size(_BIG_STACK_BYTES)
            try:
                thread.start()
            finally:
                threading.stack_size(before)
        thread.join()
        return tokens

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for: not always whole characters; empty for a control token."""
        with self._open():
            return self._piece(token, special=False)

    def is_end(self, token: int) -> bool:
        """Whether generation ends at this token; a model may have several such tokens."""
        return token in self.end_tokens

    def close(self) -> None:
        """Waits for calls in progress, then frees the model; idempotent."""
        with self._idle:
            if self._closed:
                return
            self._closed = True
            self._idle.wait_for(lambda: self._users == 0)
        llama.llama_model_free(self._model)

    @contextmanager
    def _open(self) -> Iterator[None]:
        with self._idle:
            if self._closed:
                raise ModelError("the model was unloaded: try again when a model is loaded")
            self._users += 1
        try:
            yield
        finally:
            with self._idle:
                self._users -= 1
                self._idle.notify_all()

    def _check(self, token: int) -> None:
        if not 0 <= token < self.n_vocab:
            raise InvalidRequestError(f"token {token} is not in the vocabulary of {self.n_vocab} tokens")

    def _piece(self, token: int, special: bool) -> bytes:
        self._check(token)
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            n = llama.llama_token_to_piece(self._vocab, token, buffer, room, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            room = -n

    def _text(self, token: int) -> str:
        return self._piece(token, special=True).decode("utf-8", errors="replace")

    def _known(self, token: int) -> int | None:
        return token if 0 <= token < self.n_vocab else None


def _in_pieces(text: str) -> list[str]:
    """The text cut only where a run is longer than `_RUN_LIMIT`."""
    pieces = [""]
    at, start = 0, 0
    for run in _RUNS.finditer(text):
        if run.end() - run.start() == _RUN_LIMIT:
            pieces.append(text[start : run.end()])
            start = run.end()
        at = run.end()
    pieces.append(text[start:at])
    return [piece for piece in pieces if piece]
