"""What a manifest must hold to before anything is computed from it: it may come from another device."""

from __future__ import annotations

from collections.abc import Sequence

from edged.errors import BrokenModelError
from edged.store.gguf_file import (
    MAX_DIMENSIONS,
    MAX_KEY_BYTES,
    MAX_NAME_BYTES,
    MOST_ENTRIES,
    Value,
    ValueType,
    make_pair,
    tensor_bytes,
)


def tensor_fault(name: str, ggml_type: int, shape: Sequence[int], offset: int, nbytes: int) -> str | None:
    """What is wrong with the description of a tensor, or None."""
    if not 0 < len(name.encode(errors="replace")) <= MAX_NAME_BYTES or not name.isprintable():
        return "a tensor's name is none"
    if len(shape) > MAX_DIMENSIONS or not all(0 < extent < 2**63 for extent in shape):
        return "a tensor's shape is none"
    if tensor_bytes(ggml_type, shape) != nbytes:
        return "a tensor's size is not that of its shape"
    return None if 0 <= offset < 2**63 else "a tensor's place is none"


def entry_fault(key: str, value_type: int, element_type: int | None, value: object) -> str | None:
    """What is wrong with a piece of metadata that is to be written into a header, or None."""
    if not 0 < len(key.encode(errors="replace")) <= MAX_KEY_BYTES or not key.isprintable():
        return "a key is none"
    if isinstance(value, bytes):
        return "a value is bytes"
    is_list = isinstance(value, tuple)
    if is_list != (value_type == ValueType.ARRAY) or is_list != (element_type is not None):
        return "a value is not of its type"
    if isinstance(value, tuple) and (len(value) > MOST_ENTRIES or element_type == ValueType.ARRAY):
        return "a list is none that a model has"
    try:
        _encode(key, value_type, element_type, value)
    except (BrokenModelError, ValueError):  # ValueError: an unknown type, or no Unicode
        return "a value is not of its type"
    return None


def _encode(key: str, value_type: int, element_type: int | None, value: object) -> None:
    assert isinstance(value, bool | int | float | str | tuple)
    typed: Value = value
    elements = None if element_type is None else ValueType(element_type)
    make_pair(key, typed, ValueType(value_type), elements)
