"""Reading and writing GGUF headers. The reader believes no number in a file before it has checked it.

A GGUF file is: magic, version, number of tensors, number of key-value pairs, the pairs, the tensor
descriptions, padding up to the alignment, then the tensors' bytes, each aligned. All little endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO, NoReturn

from edged.errors import BrokenModelError, shown
from edged.store.ggml_types import layouts

MAGIC = b"GGUF"
VERSION = 3  # what is written; 2, which is laid out alike, is read too
PAGE = 4096  # alignment of what is written: a tensor can be mapped, locked and dropped on its own
DEFAULT_ALIGNMENT = 32

MAX_HEADER_BYTES = 256 * 2**20  # the largest known, with 260,000 tokens and their merges, is below 30 MiB
MAX_PAIRS = 65_536
MAX_TENSORS = 1_000_000
MAX_STRINGS = 8_000_000  # in one array; the largest vocabulary's list of merges has 0.6 million
MAX_NAME_BYTES = 63  # ggml's own limit on a tensor's name
MAX_KEY_BYTES = 65_535
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 2**20
MOST_ENTRIES = 65_536  # of a list that is looked into; only a tokenizer has longer ones
_READ_AHEAD = 2**20


class ValueType(IntEnum):
    """Type numbers of metadata values, as the file format defines them."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_FORMATS = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}

Scalar = bool | int | float | str
Value = Scalar | tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """One key with its value as it stands in the file: a vocabulary is carried along, not parsed."""

    key: str
    value_type: ValueType
    element_type: ValueType | None  # of an array
    count: int  # elements of an array, else 1
    raw: bytes  # the encoded value; of an array, its elements without type and count

    def value(self) -> Value:
        """The decoded value; text that is not UTF-8 shows replacement characters."""
        if self.value_type is not ValueType.ARRAY:
            return _decode(self.raw, self.value_type, 1)[0]
        assert self.element_type is not None
        return _decode(self.raw, self.element_type, self.count)

    def encoded(self) -> bytes:
        head = _encode_text(self.key) + struct.pack("<I", self.value_type)
        if self.element_type is not None:
            head += struct.pack("<IQ", self.element_type, self.count)
        return head + self.raw


def make_pair(key: str, value: Value, value_type: ValueType, element_type: ValueType | None = None) -> Pair:
    """A pair to be written; for an array, `value` is a tuple and `element_type` its elements' type.

    Raises BrokenModelError where a number does not fit into its type.
    """
    if value_type is ValueType.ARRAY:
        assert isinstance(value, tuple) and element_type is not None
        raw = b"".join(_encode(element, element_type, key) for element in value)
        return Pair(key, value_type, element_type, len(value), raw)
    assert not isinstance(value, tuple)
    return Pair(key, value_type, None, 1, _encode(value, value_type, key))


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor's description; `offset` counts from the file's first byte."""

    name: str
    shape: tuple[int, ...]  # the fastest dimension first
    ggml_type: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A checked header: every tensor lies inside the file and none overlaps another."""

    path: Path
    size: int
    alignment: int
    pairs: dict[str, Pair]
    tensors: dict[str, TensorInfo]

    def get(self, key: str) -> Value | None:
        """The value, if there is one and it is not a list of more than MOST_ENTRIES."""
        pair = self.pairs.get(key)
        return None if pair is None or pair.count > MOST_ENTRIES else pair.value()


def read_gguf(path: Path) -> GgufFile:
    """Read and check a header. Raises BrokenModelError with one line that names the file and the fault."""
    try:
        if not path.is_file() and path.exists():  # opening a pipe would wait for its writer
            raise BrokenModelError(f"cannot read {path}: it is not a regular file")
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            return _Reader(path, file, size).read()
    except OSError as error:
        raise BrokenModelError(f"cannot read {path}: {error.strerror or error}") from None


def tensor_bytes(ggml_type: int, shape: Sequence[int]) -> int | None:
    """Bytes of a tensor; None if ggml has no such type or its rows are not whole blocks."""
    layout = layouts().get(ggml_type)
    if layout is None:
        return None
    row = shape[0] if shape else 1
    if row % layout.block_size:
        return None
    total = layout.row_bytes(row)
    for extent in shape[1:]:
        total *= extent
    return total


def padded(length: int, alignment: int = PAGE) -> int:
    return -(-length // alignment) * alignment


def write_header(
    pairs: Iterable[Pair], tensors: Sequence[tuple[str, Sequence[int], int]], alignment: int = PAGE
) -> tuple[bytes, tuple[TensorInfo, ...]]:
    """A header for `tensors` (name, shape, ggml type), and where each belongs in the file.

    The same arguments give the same bytes. The header is padded: the first tensor follows at once.
    """
    listed = [pair for pair in pairs if pair.key != "general.alignment"]
    listed.insert(0, make_pair("general.alignment", alignment, ValueType.UINT32))
    body = bytearray(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(listed)))
    for pair in listed:
        body += pair.encoded()
    relative: list[int] = []
    at = 0
    sizes: list[int] = []
    for name, shape, ggml_type in tensors:
        nbytes = tensor_bytes(ggml_type, shape)
        assert nbytes is not None, f"{name} has no size"
        body += _encode_text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        body += struct.pack("<IQ", ggml_type, at)
        relative.append(at)
        sizes.append(nbytes)
        at += padded(nbytes, alignment)
    start = padded(len(body), alignment)
    body += bytes(start - len(body))
    placed = tuple(
        TensorInfo(name, tuple(shape), ggml_type, start + offset, nbytes)
        for (name, shape, ggml_type), offset, nbytes in zip(tensors, relative, sizes, strict=True)
    )
    return bytes(body), placed


def _encode_text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _encode(value: Scalar, kind: ValueType, key: str) -> bytes:
    if kind is ValueType.STRING:
        return _encode_text(str(value))
    try:
        return struct.pack("<" + _FORMATS[kind], value)
    except (struct.error, OverflowError):
        text = f"{shown(key)} cannot be {shown(str(value), 40)} in a model: it has the type {kind.name}"
        raise BrokenModelError(text) from None


def _decode(raw: bytes, kind: ValueType, count: int) -> tuple[Scalar, ...]:
    if kind is ValueType.STRING:
        found = []
        at = 0
        for _ in range(count):
            (length,) = struct.unpack_from("<Q", raw, at)
            found.append(raw[at + 8 : at + 8 + length].decode("utf-8", "replace"))
            at += 8 + length
        return tuple(found)
    return struct.unpack(f"<{count}{_FORMATS[kind]}", raw)


class _Reader:
    """Walks a header front to back, reading the file in blocks and never past `size`."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._path = path
        self._file = file
        self._size = size
        self._buffer = bytearray()
        self._at = 0

    def read(self) -> GgufFile:
        if self._take(4) != MAGIC:
            self._fail("it does not begin with GGUF")
        version = self._number("I")
        if version not in (2, VERSION):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            hint = " (it is big endian)" if swapped in (2, VERSION) else ""
            self._fail(f"its GGUF version {version} is not one of 2 and 3{hint}")
        n_tensors, n_pairs = self._number("Q"), self._number("Q")
        # Smallest possible: a tensor takes 24 bytes, a pair 14.
        if n_tensors > min(MAX_TENSORS, self._size // 24):
            self._fail(f"it claims {n_tensors} tensors")
        if n_pairs > min(MAX_PAIRS, self._size // 14):
            self._fail(f"it claims {n_pairs} metadata entries")
        pairs: dict[str, Pair] = {}
        for _ in range(n_pairs):
            pair = self._pair()
            if pair.key in pairs:
                self._fail(f"it has {pair.key!r} twice")
            pairs[pair.key] = pair
        alignment = self._alignment(pairs)
        described = [self._tensor(alignment) for _ in range(n_tensors)]
        start = padded(self._at, alignment)
        tensors: dict[str, TensorInfo] = {}
        for name, shape, ggml_type, offset, nbytes in described:
            if name in tensors:
                self._fail(f"it has the tensor {name!r} twice")
            if start + offset + nbytes > self._size:
                self._fail(f"the tensor {name!r} ends beyond the end of the file: it is cut short")
            tensors[name] = TensorInfo(name, shape, ggml_type, start + offset, nbytes)
        self._no_overlap(tensors.values())
        return GgufFile(self._path, self._size, alignment, pairs, tensors)

    def _pair(self) -> Pair:
        key = self._text("a key", MAX_KEY_BYTES)
        value_type = self._value_type(key)
        if value_type is not ValueType.ARRAY:
            return Pair(key, value_type, None, 1, self._raw_values(key, value_type, 1))
        element_type = self._value_type(key)
        count = self._number("Q")
        if element_type is ValueType.ARRAY:
            self._fail(f"{key!r} is an array of arrays")
        return Pair(key, value_type, element_type, count, self._raw_values(key, element_type, count))

    def _raw_values(self, key: str, kind: ValueType, count: int) -> bytes:
        if kind is not ValueType.STRING:
            raw = self._take(count * struct.calcsize("<" + _FORMATS[kind]))
            if kind is ValueType.BOOL and raw.strip(b"\x00\x01"):
                self._fail(f"{key!r} is neither true nor false")
            return raw
        if count > min(MAX_STRINGS, (self._size - self._at) // 8):
            self._fail(f"{key!r} claims {count} strings")
        start = self._at
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(count):
            self._need(8)
            (length,) = unpack(self._buffer, self._at)
            self._at += 8
            self._need(length)
            self._at += length
        return bytes(self._buffer[start : self._at])

    def _tensor(self, alignment: int) -> tuple[str, tuple[int, ...], int, int, int]:
        name = self._text("a tensor's name", MAX_NAME_BYTES)
        n_dimensions = self._number("I")
        if n_dimensions > MAX_DIMENSIONS:
            self._fail(f"the tensor {name!r} claims {n_dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(n_dimensions))
        if any(not 0 < extent < 2**63 for extent in shape):
            self._fail(f"the tensor {name!r} has the shape {shape}")
        ggml_type = self._number("I")
        offset = self._number("Q")
        if ggml_type not in layouts():
            self._fail(f"the tensor {name!r} has type {ggml_type}, which this version does not know")
        nbytes = tensor_bytes(ggml_type, shape)
        if nbytes is None:
            self._fail(f"the rows of the tensor {name!r} are not whole blocks of {layouts()[ggml_type].name}")
        if offset % alignment:
            self._fail(f"the tensor {name!r} is not aligned to {alignment} bytes")
        if nbytes > self._size or offset > self._size:
            self._fail(f"the tensor {name!r} is larger than the file")
        return name, shape, ggml_type, offset, nbytes

    def _alignment(self, pairs: dict[str, Pair]) -> int:
        pair = pairs.get("general.alignment")
        if pair is None:
            return DEFAULT_ALIGNMENT
        value = pair.value() if pair.value_type is ValueType.UINT32 else None
        if not isinstance(value, int) or not 8 <= value <= MAX_ALIGNMENT or value & (value - 1):
            self._fail("its alignment is not a sensible power of two")
        return value

    def _no_overlap(self, tensors: Iterable[TensorInfo]) -> None:
        end, before = 0, ""
        for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
            if tensor.offset < end:
                self._fail(f"the tensors {before!r} and {tensor.name!r} overlap")
            end, before = tensor.offset + tensor.nbytes, tensor.name

    def _text(self, what: str, limit: int) -> str:
        length = self._number("Q")
        if not 0 < length <= limit:
            self._fail(f"{what} claims {length} bytes")
        try:
            text = self._take(length).decode()
        except UnicodeDecodeError:
            self._fail(f"{what} is not text")
        if not text.isprintable():
            self._fail(f"{what} has unprintable characters")
        return text

    def _value_type(self, key: str) -> ValueType:
        number = self._number("I")
        try:
            return ValueType(number)
        except ValueError:
            self._fail(f"{key!r} has the unknown type {number}")

    def _number(self, kind: str) -> int:
        (value,) = struct.unpack("<" + kind, self._take(struct.calcsize("<" + kind)))
        return int(value)

    def _take(self, length: int) -> bytes:
        self._need(length)
        start, self._at = self._at, self._at + length
        return bytes(self._buffer[start : self._at])

    def _need(self, length: int) -> None:
        """Have `length` more bytes in the buffer, or fail."""
        end = self._at + length
        if end <= len(self._buffer):
            return
        if end > self._size:
            self._fail("it is cut short")
        if end > MAX_HEADER_BYTES:
            self._fail(f"its header is larger than {MAX_HEADER_BYTES // 2**20} MiB")
        wanted = max(end - len(self._buffer), _READ_AHEAD)
        self._buffer += self._file.read(wanted)
        if end > len(self._buffer):
            self._fail("it became shorter while it was read")

    def _fail(self, fault: str) -> NoReturn:
        raise BrokenModelError(f"{shown(self._path.name)} is not a usable GGUF file: {shown(fault, 200)}")
