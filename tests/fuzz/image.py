"""A GGUF taken to pieces that can be bent before they are put together again, into a file that lies."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edged.store.gguf_file import Pair, ValueType, padded, read_gguf

_FORMATS = "BbHhIif?sxQqd"  # of a scalar, by its type number; s and x: text and array


@dataclass
class Entry:
    """One key-value pair; `count` is what the file claims, whatever `raw` holds."""

    key: bytes
    kind: int
    element: int
    count: int
    raw: bytes

    def encoded(self) -> bytes:
        head = struct.pack("<Q", len(self.key)) + self.key + struct.pack("<I", self.kind)
        if self.kind == ValueType.ARRAY:
            head += struct.pack("<IQ", self.element, self.count)
        return head + self.raw


@dataclass
class Weights:
    """One tensor; `offset` None: where it belongs."""

    name: bytes
    shape: list[int]
    kind: int
    data: bytes
    offset: int | None = None
    n_dimensions: int | None = None


@dataclass
class Image:
    entries: list[Entry]
    tensors: list[Weights]
    alignment: int = 32  # of the data as it is laid out, whatever the file claims
    version: int = 3
    magic: bytes = b"GGUF"
    n_entries: int | None = None  # what the file claims; None: the truth
    n_tensors: int | None = None
    flips: list[tuple[int, int]] = field(default_factory=list)  # (position, byte) in the finished header
    cut: int | None = None  # length that is left of the finished file

    def copy(self) -> Image:
        return replace(
            self,
            entries=[replace(entry) for entry in self.entries],
            tensors=[replace(tensor, shape=list(tensor.shape)) for tensor in self.tensors],
            flips=list(self.flips),
        )

    def find(self, key: str) -> Entry | None:
        return next((entry for entry in self.entries if entry.key == key.encode()), None)

    @property
    def architecture(self) -> str:
        entry = self.find("general.architecture")
        return "llama" if entry is None else entry.raw[8:].decode("utf-8", "replace")

    def built(self) -> bytes:
        body = bytearray(self.magic)
        body += struct.pack(
            "<IQQ",
            self.version,
            len(self.tensors) if self.n_tensors is None else self.n_tensors,
            len(self.entries) if self.n_entries is None else self.n_entries,
        )
        for entry in self.entries:
            body += entry.encoded()
        at = 0
        for tensor in self.tensors:
            dimensions = len(tensor.shape) if tensor.n_dimensions is None else tensor.n_dimensions
            body += struct.pack("<Q", len(tensor.name)) + tensor.name + struct.pack("<I", dimensions)
            body += b"".join(struct.pack("<Q", extent % 2**64) for extent in tensor.shape)
            offset = at if tensor.offset is None else tensor.offset
            body += struct.pack("<IQ", tensor.kind % 2**32, offset % 2**64)
            at += padded(len(tensor.data), self.alignment)
        for position, byte in self.flips:
            body[position % len(body)] = byte
        body += bytes(-len(body) % self.alignment)
        for tensor in self.tensors:
            body += tensor.data + bytes(-len(tensor.data) % self.alignment)
        return bytes(body if self.cut is None else body[: self.cut])


def take_apart(path: Path) -> Image:
    """The pieces of a sound file."""
    file = read_gguf(path)
    with path.open("rb") as data:
        tensors = []
        for info in file.tensors.values():
            data.seek(info.offset)
            tensors.append(
                Weights(info.name.encode(), list(info.shape), info.ggml_type, data.read(info.nbytes))
            )
    return Image([_entry(pair) for pair in file.pairs.values()], tensors, file.alignment)


def scalar(key: str, kind: ValueType, value: float | str | bytes) -> Entry:
    return Entry(key.encode(), kind, 0, 1, _raw(kind, value))


def array(key: str, element: ValueType, values: Sequence[float] | Sequence[str] | Sequence[bytes]) -> Entry:
    raw = b"".join(_raw(element, value) for value in values)
    return Entry(key.encode(), ValueType.ARRAY, element, len(values), raw)


def _entry(pair: Pair) -> Entry:
    return Entry(pair.key.encode(), pair.value_type, pair.element_type or 0, pair.count, pair.raw)


def _raw(kind: ValueType, value: float | str | bytes) -> bytes:
    if kind is ValueType.STRING:
        data = value.encode() if isinstance(value, str) else value
        assert isinstance(data, bytes)
        return struct.pack("<Q", len(data)) + data
    assert not isinstance(value, str | bytes)
    if kind in (ValueType.FLOAT32, ValueType.FLOAT64, ValueType.BOOL):
        return struct.pack("<" + _FORMATS[kind], value)
    size = struct.calcsize(_FORMATS[kind])
    return bytes((int(value) % 256**size).to_bytes(size, "little"))
