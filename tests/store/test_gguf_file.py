"""The reader against truth, truncation, flipped bytes and headers that lie."""

from __future__ import annotations

import os
import random
import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edged.errors import BrokenModelError
from edged.store.gguf_file import PAGE, GgufFile, ValueType, make_pair, read_gguf, write_header

F32, Q4_0 = 0, 2


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: str, kind: int, raw: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + raw


def array(key: str, element: int, count: int, raw: bytes = b"") -> bytes:
    return pair(key, 9, struct.pack("<IQ", element, count) + raw)


def tensor(name: str, shape: tuple[int, ...], kind: int = F32, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def header(
    pairs: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    n_pairs: int | None = None,
    n_tensors: int | None = None,
    version: int = 3,
    magic: bytes = b"GGUF",
) -> bytes:
    pairs, tensors = pairs or [], tensors or []
    counts = struct.pack(
        "<IQQ",
        version,
        len(tensors) if n_tensors is None else n_tensors,
        len(pairs) if n_pairs is None else n_pairs,
    )
    return magic + counts + b"".join(pairs) + b"".join(tensors)


def with_data(head: bytes, data: int = 4096) -> bytes:
    return head + bytes(-len(head) % 32) + bytes(data)


def read(tmp_path: Path, data: bytes) -> GgufFile:
    path = tmp_path / "made.gguf"
    path.write_bytes(data)
    return read_gguf(path)


def test_it_reads_what_the_reference_implementation_wrote(small_file: Path) -> None:
    ours, theirs = read_gguf(small_file), gguf.GGUFReader(small_file)
    assert list(ours.tensors) == [one.name for one in theirs.tensors]
    for one in theirs.tensors:
        mine = ours.tensors[one.name]
        assert (mine.offset, mine.nbytes) == (one.data_offset, one.n_bytes)
        assert mine.shape == tuple(int(extent) for extent in one.shape)
    keys = [key for key in theirs.fields if not key.startswith("GGUF.")]
    assert list(ours.pairs) == keys
    for key in keys:
        expected = theirs.fields[key].contents()
        got = ours.get(key)
        assert (list(got) if isinstance(got, tuple) else got) == expected


def test_the_bundled_model_is_read_quickly(bundled_file: Path) -> None:
    ours = read_gguf(bundled_file)
    assert ours.get("llama.block_count") == 30
    assert ours.pairs["tokenizer.ggml.tokens"].count == 49152
    assert len(ours.tensors) == 272


def test_version_two_and_odd_values(tmp_path: Path) -> None:
    made = header(
        [
            pair("a", 0, b"\x07"),
            pair("b", 1, b"\xff"),
            pair("c", 12, struct.pack("<d", 0.1)),
            pair("d", 7, b"\x01"),
            pair("e", 8, text(b"\xff\xfe")),
            array("f", 8, 2, text("x") + text("")),
            array("g", 11, 2, struct.pack("<2q", -1, 2**62)),
            array("h", 4, 0),
        ],
        version=2,
    )
    file = read(tmp_path, made)
    values = {key: file.get(key) for key in file.pairs}
    assert values == {
        "a": 7,
        "b": -1,
        "c": 0.1,
        "d": True,
        "e": "\ufffd\ufffd",
        "f": ("x", ""),
        "g": (-1, 2**62),
        "h": (),
    }
    assert file.get("none") is None
    assert b"".join(one.encoded() for one in file.pairs.values()) == made[24:]


def test_the_writer_is_read_back_by_both(tmp_path: Path) -> None:
    pairs = [
        make_pair("general.architecture", "llama", ValueType.STRING),
        make_pair("llama.list", (1, 2, 3), ValueType.ARRAY, ValueType.INT32),
        make_pair("llama.words", ("a", "ö"), ValueType.ARRAY, ValueType.STRING),
    ]
    tensors = [("one", (3, 5), F32), ("two", (64, 2), Q4_0), ("three", (1,), F32)]
    head, placed = write_header(pairs, tensors)
    assert (head, placed) == write_header(pairs, tensors)
    assert len(head) % PAGE == 0
    assert [info.offset % PAGE for info in placed] == [0, 0, 0]
    data = bytearray(placed[-1].offset + placed[-1].nbytes)
    data[: len(head)] = head
    values = np.arange(15, dtype=np.float32)
    data[placed[0].offset : placed[0].offset + 60] = values.tobytes()
    file = read(tmp_path, bytes(data))
    assert tuple(file.tensors.values()) == placed
    assert file.get("llama.words") == ("a", "ö")
    theirs = gguf.GGUFReader(file.path)
    assert np.array_equal(theirs.tensors[0].data.reshape(-1), values)
    assert theirs.fields["llama.list"].contents() == [1, 2, 3]


ABSURD = {
    "empty": b"",
    "magic": header(magic=b"GGJT"),
    "version 1": header(version=1),
    "version 4": header(version=4),
    "big endian": header(version=3 << 24),
    "tensor count": header(n_tensors=2**63),
    "pair count": header(n_pairs=2**64 - 1),
    "some more pairs than there are": header([pair("a", 4, bytes(4))], n_pairs=2),
    "key length": header([struct.pack("<Q", 2**63) + b"a"], n_pairs=1),
    "empty key": header([pair("", 4, bytes(4))]),
    "key not text": header([text(b"\xff\xff") + struct.pack("<I", 4) + bytes(4)]),
    "key with a terminal's control codes": header([pair("a\x1b[31m", 4, bytes(4))]),
    "twice the same key": header([pair("a", 4, bytes(4)), pair("a", 4, bytes(4))]),
    "unknown value type": header([pair("a", 13, bytes(4))]),
    "no such element type": header([array("a", 77, 1, bytes(64))]),
    "array of arrays": header([array("a", 9, 1, struct.pack("<IQ", 4, 1) + bytes(4))]),
    "array length": header([array("a", 4, 2**62)]),
    "array of strings, length": header([array("a", 8, 2**61)]),
    "string in an array, length": header([array("a", 8, 1, struct.pack("<Q", 2**64 - 1))]),
    "string length": header([pair("a", 8, struct.pack("<Q", 2**40))]),
    "a bool of 2": header([pair("a", 7, b"\x02")]),
    "alignment 0": with_data(header([pair("general.alignment", 4, struct.pack("<I", 0))])),
    "alignment 3": with_data(header([pair("general.alignment", 4, struct.pack("<I", 48))])),
    "alignment of 2 GiB": with_data(header([pair("general.alignment", 4, struct.pack("<I", 2**31))])),
    "alignment is a text": with_data(header([pair("general.alignment", 8, text("32"))])),
    "tensor name length": with_data(header(tensors=[tensor("n" * 64, (1,))])),
    "tensor without a name": with_data(header(tensors=[tensor("", (1,))])),
    "five dimensions": with_data(header(tensors=[tensor("t", (1, 1, 1, 1, 1))])),
    "four billion dimensions": with_data(header(tensors=[text("t") + struct.pack("<I", 2**32 - 1)])),
    "extent 0": with_data(header(tensors=[tensor("t", (4, 0))])),
    "extent 2^63": with_data(header(tensors=[tensor("t", (2**63,))])),
    "product of extents": with_data(header(tensors=[tensor("t", (2**62, 2**62, 2**62, 2**62))])),
    "unknown type": with_data(header(tensors=[tensor("t", (32,), 999)])),
    "removed type": with_data(header(tensors=[tensor("t", (32,), 4)])),
    "half a block": with_data(header(tensors=[tensor("t", (33,), Q4_0)])),
    "misaligned": with_data(header(tensors=[tensor("t", (4,), offset=8)])),
    "beyond the end": with_data(header(tensors=[tensor("t", (4,), offset=2**40)])),
    "offset wraps round": with_data(header(tensors=[tensor("t", (4,), offset=2**64 - 32)])),
    "ends beyond the end": with_data(header(tensors=[tensor("t", (1024,), offset=32)])),
    "overlap": with_data(header(tensors=[tensor("a", (64,)), tensor("b", (4,), offset=32)])),
    "same place": with_data(header(tensors=[tensor("a", (4,)), tensor("b", (4,))])),
    "twice the same tensor": with_data(header(tensors=[tensor("a", (4,)), tensor("a", (4,), offset=32)])),
}


@pytest.mark.parametrize("fault", ABSURD)
def test_absurd_headers_are_refused_in_one_line(fault: str, tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BrokenModelError) as caught:
            read(tmp_path, ABSURD[fault])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.message.startswith("made.gguf is not a usable GGUF file: ")
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 200
    assert peak < 8 * 2**20


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BrokenModelError, match="No such file"):
        read_gguf(tmp_path / "none.gguf")
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(BrokenModelError, match="not a regular file"):
            read_gguf(other)


def test_cut_anywhere_it_is_broken(small_file: Path, tmp_path: Path) -> None:
    whole = small_file.read_bytes()
    end = max(one.offset + one.nbytes for one in read_gguf(small_file).tensors.values())
    rng = random.Random(1)
    for length in [*range(0, 64), *(rng.randrange(end) for _ in range(200)), end - 1]:
        with pytest.raises(BrokenModelError):
            read(tmp_path, whole[:length])
    assert read(tmp_path, whole[:end]).tensors


def test_flipped_bytes_are_read_or_refused(small_file: Path, tmp_path: Path) -> None:
    whole = small_file.read_bytes()
    start = min(one.offset for one in read_gguf(small_file).tensors.values())
    rng = random.Random(2)
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 1, 4])):
            data[rng.randrange(start)] = rng.randrange(256)
        try:
            read(tmp_path, bytes(data))
        except BrokenModelError:
            refused += 1
    assert 20 < refused < 400


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=300), n_pairs=st.integers(0, 5), n_tensors=st.integers(0, 5))
def test_any_bytes_are_read_or_refused(tmp_path: Path, body: bytes, n_pairs: int, n_tensors: int) -> None:
    data = b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_pairs) + body
    try:
        file = read(tmp_path, data)
    except BrokenModelError:
        return
    assert len(file.pairs) == n_pairs and len(file.tensors) == n_tensors


def test_millions_of_empty_strings_are_no_trouble(tmp_path: Path) -> None:
    count = 2_000_000
    file = read(tmp_path, header([array("a", 8, count, bytes(8 * count))]))
    assert file.pairs["a"].count == count
