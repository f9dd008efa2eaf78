from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from llama_cpp import Llama

from edged.errors import BrokenModelError, InvalidRequestError, ModelError
from edged.serving.tokenizer import Tokenizer
from edged.store.gguf_file import read_gguf
from tests.serving.vocabularies import with_metadata, without

TEXTS = [
    "Hello, world",
    "  two  spaces\n\nand lines\t",
    "naïve 🙂 日本語 \u0301",
    "a\0b",
    "<|im_start|>user",
    "",
]


@pytest.fixture(scope="module")
def reference(model_path: Path) -> Llama:
    return Llama(str(model_path), vocab_only=True, verbose=False)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("special", [True, False])
def test_encodes_as_llama_cpp_python_does(
    tokenizer: Tokenizer, reference: Llama, text: str, special: bool
) -> None:
    found = tokenizer.encode(text, add_special=True, parse_special=special)
    assert found == reference.tokenize(text.encode(), add_bos=True, special=special)


def test_pieces_make_the_text_again(tokenizer: Tokenizer) -> None:
    for text in TEXTS:
        tokens = tokenizer.encode(text, add_special=False, parse_special=False)
        assert b"".join(map(tokenizer.piece, tokens)).decode() == text


def test_control_tokens_have_no_text_and_end_generation(tokenizer: Tokenizer) -> None:
    (end,) = tokenizer.encode("<|im_end|>", add_special=False, parse_special=True)
    assert tokenizer.piece(end) == b""
    assert tokenizer.is_end(end) and end == tokenizer.eos and tokenizer.eos_text == "<|im_end|>"
    (text_end,) = tokenizer.encode("<|endoftext|>", add_special=False, parse_special=True)
    assert tokenizer.is_end(text_end) and {end, text_end} <= tokenizer.end_tokens
    assert len(tokenizer.end_tokens) < 10
    assert not tokenizer.is_end(tokenizer.encode("a", add_special=False, parse_special=False)[0])


def test_begin_token_only_where_the_model_wants_it(
    tokenizer: Tokenizer, vocab_path: Path, tmp_path: Path
) -> None:
    assert not tokenizer.adds_bos and tokenizer.bos == 1
    adding = Tokenizer(with_metadata(vocab_path, tmp_path / "bos.gguf", add_bos_token=True))
    try:
        plain = tokenizer.encode("hi", add_special=True, parse_special=True)
        assert adding.encode("hi", add_special=True, parse_special=True) == [1, *plain]
        assert adding.encode("hi", add_special=False, parse_special=True) == plain
    finally:
        adding.close()


def test_unknown_tokens_and_broken_text_are_refused(tokenizer: Tokenizer) -> None:
    for token in (-1, tokenizer.n_vocab):
        with pytest.raises(InvalidRequestError, match="not in the vocabulary"):
            tokenizer.piece(token)
    with pytest.raises(InvalidRequestError, match="surrogate"):
        tokenizer.encode("a\ud800", add_special=True, parse_special=True)


def test_two_megabytes(tokenizer: Tokenizer) -> None:
    text = "one two three " * 150_000
    tokens = tokenizer.encode(text, add_special=True, parse_special=True)
    beginning = b"".join(map(tokenizer.piece, tokens[:3000])).decode()
    assert len(beginning) > 3000 and text.startswith(beginning)
    lengths = sum(len(tokenizer.piece(token)) * times for token, times in Counter(tokens).items())
    assert lengths == len(text)


LONG_RUN = """
import sys
from pathlib import Path
from edged.serving.tokenizer import Tokenizer
tokenizer = Tokenizer(Path(sys.argv[1]))
for text in ("a" * 120_000, "!" * 60_000, "\\n" * 60_000, "x" * 40_000 + " and " + "y" * 60_000):
    tokens = tokenizer.encode(text, add_special=True, parse_special=True)
    assert b"".join(map(tokenizer.piece, tokens)).decode() == text, text[:10]
print("intact")
"""


def test_a_very_long_word_does_not_end_the_process(vocab_path: Path, tmp_path: Path) -> None:
    """libllama's regex for this kind of vocabulary overflows the stack on it; hence a process of its own."""
    path = with_metadata(vocab_path, tmp_path / "deepseek.gguf", pre="deepseek-v3")
    done = subprocess.run(
        [sys.executable, "-c", LONG_RUN, str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "intact"), done.stderr[-500:]


def test_what_would_abort_libllama_is_refused(vocab_path: Path, tmp_path: Path) -> None:
    tokens = list(read_gguf(vocab_path).get("tokenizer.ggml.tokens") or ())
    tokens[300] = tokens[301]
    with pytest.raises(BrokenModelError, match="twice"):
        Tokenizer(with_metadata(vocab_path, tmp_path / "twice.gguf", tokens=tuple(tokens)))
    with pytest.raises(BrokenModelError, match="no token for the byte 0x"):
        Tokenizer(with_metadata(vocab_path, tmp_path / "bytes.gguf", model="llama"))
    with pytest.raises(BrokenModelError, match=r"^my-model: "):
        Tokenizer(tmp_path / "bytes.gguf", "my-model")
    with pytest.raises(BrokenModelError, match="no vocabulary"):
        Tokenizer(without(vocab_path, tmp_path / "none.gguf", "tokens"))
    with pytest.raises(BrokenModelError):
        Tokenizer(with_metadata(vocab_path, tmp_path / "kind.gguf", model="crystal-ball"))
    with pytest.raises(BrokenModelError):
        Tokenizer(without(vocab_path, tmp_path / "merges.gguf", "merges"))


@pytest.mark.parametrize("body", [b"", b"GGUF", b"nonsense" * 100])
def test_files_that_are_no_model(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "vocab"
    path.write_bytes(body)
    with pytest.raises(BrokenModelError):
        Tokenizer(path)
    with pytest.raises(BrokenModelError):
        Tokenizer(tmp_path / "absent")


def test_many_threads_and_close(vocab_path: Path) -> None:
    tokenizer = Tokenizer(vocab_path)
    expected = tokenizer.encode(TEXTS[2] * 50, add_special=True, parse_special=True)
    wrong: list[object] = []

    def work() -> None:
        try:
            while True:
                if tokenizer.encode(TEXTS[2] * 50, add_special=True, parse_special=True) != expected:
                    wrong.append("different")
                started.set()
        except ModelError as error:
            if "unloaded" not in error.message:
                wrong.append(error)

    started = threading.Event()
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert started.wait(30)
    tokenizer.close()
    tokenizer.close()
    for thread in threads:
        thread.join(30)
    assert not wrong
    with pytest.raises(ModelError, match="unloaded"):
        tokenizer.piece(5)
