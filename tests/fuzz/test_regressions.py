"""Each of these once ended, stopped or swelled a process that should only have said what is wrong."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import pytest

from edged.backend.native import load_window
from edged.backend.window import Batch
from edged.errors import BrokenModelError, EdgedError, WindowError
from edged.planning.plan import ContextOptions
from edged.serving.tokenizer import Tokenizer
from edged.store import probe
from edged.store.catalogue import Catalogue
from edged.store.charsmap import charsmap_fault
from edged.store.compose import compose
from edged.store.gguf_file import ValueType, read_gguf
from edged.store.importer import import_model
from edged.store.in_place import FileCatalogue, refer_to
from edged.store.index_tables import check_index_tables
from edged.store.manifest import Manifest
from edged.store.model_files import open_model
from edged.store.vocabulary_check import check_vocabulary
from tests.fuzz.image import Entry, Image, Weights, array, scalar, take_apart
from tests.models.random_models import write_random_model

SMALL = ContextOptions(n_ctx=32, n_seq_max=1, n_ubatch=16)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("fuzz") / "small.gguf")


@pytest.fixture
def sound(small_file: Path) -> Image:
    return take_apart(small_file)


@pytest.fixture(scope="module")
def home(small_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Catalogue, Manifest]:
    catalogue = Catalogue(tmp_path_factory.mktemp("home"))
    return catalogue, import_model(small_file, catalogue)


def written(image: Image, folder: Path, name: str = "spoilt.gguf") -> Path:
    path = folder / name
    path.write_bytes(image.built())
    return path


def spell(image: Image, kind: str, tokens: list[bytes], *more: Entry) -> Image:
    """The image with another vocabulary."""
    image.entries = [entry for entry in image.entries if not entry.key.startswith(b"tokenizer.")]
    image.entries += [
        scalar("tokenizer.ggml.model", ValueType.STRING, kind),
        array("tokenizer.ggml.tokens", ValueType.STRING, tokens),
        array("tokenizer.ggml.token_type", ValueType.INT32, [1] * len(tokens)),
        array("tokenizer.ggml.scores", ValueType.FLOAT32, [0.0] * len(tokens)),
        *more,
    ]
    return image


LETTERS = [bytes([byte]) for byte in range(1, 127) if byte != ord("\\")]


@pytest.mark.parametrize(
    ("kind", "tokens", "words"),
    [
        ("rwkv", [*LETTERS, b"\\xc3\\xa9"], "no token for the byte 0xC3, with which others begin"),
        ("rwkv", [word for word in LETTERS if word != b"\n"] + [b"\\n\\n"], "no token for the byte 0x0A"),
        ("plamo2", [*LETTERS, b"\xff\xfe"], "is not text"),
        ("hybriddna", [*LETTERS, "\ue000".encode()], "stands for nothing"),
        ("rwkv", [*LETTERS, b"a" * 2000], "a token of 2000 bytes"),
        ("gpt2", [*LETTERS, b"a" * 5000], "a token of 5000 bytes"),
        ("llama", [*LETTERS, *(b"<0x%02X>" % byte for byte in range(1, 256)), b"\0"], "the byte 0x00"),
    ],
)
def test_vocabularies_that_some_text_would_not_survive(
    sound: Image, tmp_path: Path, kind: str, tokens: list[bytes], words: str
) -> None:
    with pytest.raises(BrokenModelError, match=words) as caught:
        check_vocabulary(written(spell(sound, kind, tokens), tmp_path), "spoilt")
    assert caught.value.message.isprintable()


def test_a_sound_rwkv_vocabulary_is_used(sound: Image, tmp_path: Path) -> None:
    every_byte = [b"\\x%02x" % byte for byte in range(256)]
    path = written(spell(sound, "rwkv", [*every_byte, b"th", b"the", b"\\n\\n"]), tmp_path)
    tokenizer = Tokenizer(path)
    try:
        assert tokenizer.encode("the\n\nt", add_special=False, parse_special=False) == [257, 258, ord("t")]
    finally:
        tokenizer.close()


def charsmap(nodes: list[int], texts: bytes) -> bytes:
    return struct.pack(f"<I{len(nodes)}I", 4 * len(nodes), *nodes) + texts


def one_replacement(value: int = 0, base: int = 0) -> list[int]:
    """A double array with the one word `A`: a child of the root (at 0, base 1) with its value at `base`."""
    nodes = [0] * 512
    nodes[0] = 1 << 10
    at = 1 ^ ord("A")
    nodes[at] = ord("A") | 1 << 8 | (at ^ (base or 256)) << 10
    nodes[(base or 256) % 512] = value | 1 << 31
    return nodes


@pytest.mark.parametrize(
    ("table", "sound_table"),
    [
        (b"", True),
        (charsmap(one_replacement(), b"abc\0"), True),
        (charsmap(one_replacement(value=3), b"abc\0"), True),
        (charsmap(one_replacement(value=4), b"abc\0"), False),
        (charsmap(one_replacement(value=0), b"abc"), False),
        (charsmap(one_replacement(base=5000), b"abc\0"), False),
        (charsmap([0] * 100, b"\0"), False),  # a byte of 200 leads out of it
        (b"\xff\xff\xff\xff", False),
        (b"ab", False),
    ],
)
def test_a_table_to_normalise_text(table: bytes, sound_table: bool) -> None:
    assert (charsmap_fault(table) is None) == sound_table


def test_a_table_that_leads_out_is_refused_with_its_model(sound: Image, tmp_path: Path) -> None:
    table = array("tokenizer.ggml.precompiled_charsmap", ValueType.UINT8, list(charsmap([0] * 8, b"\0")))
    with pytest.raises(BrokenModelError, match="its table of characters to normalise is broken"):
        check_vocabulary(written(spell(sound, "t5", LETTERS, table), tmp_path), "spoilt")


def test_a_tokenizer_that_asserts_there_are_no_spaces(sound: Image, tmp_path: Path) -> None:
    tokens = [*(entry.encode() for entry in map(chr, range(33, 321))), b" "][:288]
    merges = array("tokenizer.ggml.merges", ValueType.STRING, ["a b"])
    pre = scalar("tokenizer.ggml.pre", ValueType.STRING, "whitespace")
    path = written(spell(sound, "gpt2", tokens, merges, pre), tmp_path)
    with pytest.raises(BrokenModelError, match=r"llama\.cpp ended with SIGABRT"):
        import_model(path, Catalogue(tmp_path / "home"))


@pytest.mark.parametrize(("expert", "good"), [(3, True), (4, False), (-1, False), (2**31 - 1, False)])
def test_a_table_that_names_experts_which_are_not(
    sound: Image, tmp_path: Path, expert: int, good: bool
) -> None:
    table = struct.pack("<8i", 0, 1, 2, 3, 0, 1, 2, expert)
    sound.tensors.append(Weights(b"blk.1.ffn_gate_tid2eid.weight", [2, 4], 26, table))
    sound.entries.append(scalar("llama.expert_count", ValueType.UINT32, 4))
    files = open_model(written(sound, tmp_path))
    with contextlib.nullcontext() if good else pytest.raises(BrokenModelError, match="names experts beyond"):
        check_index_tables(files)


def test_a_layer_in_the_middle_that_cannot_be_computed(sound: Image, tmp_path: Path) -> None:
    """The first and the last layer are sound."""
    tensor = next(tensor for tensor in sound.tensors if tensor.name == b"blk.2.ffn_up.weight")
    tensor.kind = int(gguf.GGMLQuantizationType.I32)  # as many bytes as f32; there is no product of it
    with pytest.raises(BrokenModelError, match=r"spoilt was refused: llama\.cpp ended with SIG[A-Z]+ on it$"):
        import_model(written(sound, tmp_path), Catalogue(tmp_path / "home"))


def test_a_window_that_would_abort_at_load_is_refused_before(home: tuple[Catalogue, Manifest]) -> None:
    """As a device without scruples might offer it, whose parts are those of a sound model."""
    catalogue, manifest = home
    entry = next(one for one in manifest.metadata if one.key == "llama.block_count")
    hostile = manifest.model_copy(
        update={
            "metadata": (
                *manifest.metadata,
                entry.model_copy(update={"key": "llama.expert_count", "value": 9**6}),
            )
        }
    )
    source = compose(hostile, catalogue, 1, 3)
    rehearsals = probe.Rehearsals()
    with pytest.raises(BrokenModelError, match=r"layers 1 to 2 was refused: llama\.cpp ended"):
        rehearsals.rehearse(source, SMALL, n_threads=1)
    rehearsals.rehearse(compose(manifest, catalogue, 1, 3), SMALL, n_threads=1)


def test_text_that_libllama_logs_is_cut_off_in_the_middle_of_a_character(
    sound: Image, tmp_path: Path
) -> None:
    """It shows some forty bytes of a value."""
    for shift in range(3):
        sound.entries.append(
            scalar(f"general.note{shift}", ValueType.STRING, "x" * shift + "家" * 60 + "\U0001f600" * 60)
        )
    catalogue = Catalogue(tmp_path / "home")
    manifest = import_model(written(sound, tmp_path), catalogue)
    load_window(compose(manifest, catalogue, 0, 2), SMALL, n_threads=1).close()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 0.25, 1e30])
@pytest.mark.parametrize(
    "name",
    ["attention.sliding_window", "attention.head_count", "leading_dense_block_count", "rope.freq_base"],
)
def test_rules_of_cutting_take_any_number(sound: Image, tmp_path: Path, name: str, value: float) -> None:
    for architecture in ("llama", "gptneox", "gemma2", "plamo2"):
        image = sound.copy()
        for entry in image.entries:
            if entry.key.startswith(b"llama."):
                entry.key = architecture.encode() + entry.key[len("llama") :]
        image.entries = [entry for entry in image.entries if not entry.key.endswith(name.encode())]
        key = f"{architecture}.{name}"
        layers = [value, 4.0, 4.0, 4.0, 4.0]
        for entry in (scalar(key, ValueType.FLOAT32, value), array(key, ValueType.FLOAT32, layers)):
            image.entries.append(entry)
            next(one for one in image.entries if one.key == b"general.architecture").raw = scalar(
                "", ValueType.STRING, architecture
            ).raw
            files = open_model(written(image, tmp_path))
            image.entries.pop()
            with contextlib.suppress(EdgedError):
                manifest, places = refer_to(files, tmp_path, recurrent=False, n_vocab=288)
                for first, last in pairwise([0, *manifest.boundaries, manifest.n_layers]):
                    compose(manifest, FileCatalogue(tmp_path, places), first, last)


def test_what_went_well_is_not_rehearsed_again(
    home: tuple[Catalogue, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue, manifest = home
    asked: list[object] = []

    def run(request: object, *_: object) -> tuple[int, bytes, bytes]:
        asked.append(request)
        return 0, b"{}", b""

    monkeypatch.setattr(probe, "run_child", run)
    rehearsals = probe.Rehearsals()
    for first, context in ((1, SMALL), (1, SMALL), (2, SMALL), (1, SMALL.model_copy(update={"n_ctx": 64}))):
        rehearsals.rehearse(compose(manifest, catalogue, first, 3), context, n_threads=1)
    assert len(asked) == 3


def test_a_rehearsal_ends_when_nobody_wants_it_any_more(home: tuple[Catalogue, Manifest]) -> None:
    class OvertakenError(Exception):
        pass

    def wanted() -> None:
        raise OvertakenError

    catalogue, manifest = home
    with pytest.raises(OvertakenError):
        probe.run_child({"do": "nothing"}, b"", 60, wanted)
    with pytest.raises(WindowError):  # and what the child refuses in words comes back as what it was
        probe.Rehearsals().rehearse(
            compose(manifest, catalogue, 1, 3),
            SMALL.model_copy(update={"kv_type": "q8_0", "flash_attention": "off"}),
            n_threads=1,
        )


def test_more_sequences_than_tokens_in_a_batch(home: tuple[Catalogue, Manifest]) -> None:
    catalogue, manifest = home
    context = ContextOptions(n_ctx=32, n_seq_max=40, n_ubatch=2)
    window = load_window(compose(manifest, catalogue, 0, manifest.n_layers), context, n_threads=1)
    try:
        batch = Batch(np.zeros(2, np.int32), np.arange(2, dtype=np.int32), np.ones(2, np.bool_))
        assert window.run_last(batch, np.ones(2, np.int32)).shape == (2, manifest.n_vocab)
    finally:
        window.close()


def test_a_list_without_end_where_a_number_belongs(sound: Image, tmp_path: Path) -> None:
    count = 2_000_000
    entry = sound.find("llama.block_count")
    assert entry is not None
    entry.kind, entry.element, entry.count, entry.raw = ValueType.ARRAY, ValueType.UINT8, count, bytes(count)
    path = written(sound, tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(BrokenModelError, match=r"llama\.block_count is missing or absurd"):
            open_model(path).hyperparameter("block_count")
        assert tracemalloc.get_traced_memory()[1] < 4 * count
    finally:
        tracemalloc.stop()


def test_a_file_whose_name_or_keys_would_break_the_line(tmp_path: Path) -> None:
    path = tmp_path / "two\nlines\x1b[31m.gguf"
    path.write_bytes(b"GGUX")
    with pytest.raises(BrokenModelError) as caught:
        read_gguf(path)
    assert caught.value.message.isprintable()
    image = Image([scalar("k" * 60_000, ValueType.UINT32, 1)] * 2, [])
    path.write_bytes(image.built())
    with pytest.raises(BrokenModelError, match=r"k{50}") as caught:
        read_gguf(path)
    assert len(caught.value.message) < 400


def test_a_file_that_cannot_be_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(EdgedError):
        open_model(tmp_path / ("x" * 300 + ".gguf"))
