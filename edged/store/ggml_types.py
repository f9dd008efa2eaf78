"""How many bytes a tensor of each ggml type takes, asked of the ggml that will compute with it."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_MOST_TYPES = 43  # GGML_TYPE_COUNT of the pinned llama.cpp: ggml cannot be asked beyond it


@dataclass(frozen=True, slots=True)
class TypeLayout:
    """Values are stored in blocks of `block_size` values, each of `block_bytes` bytes."""

    name: str
    block_size: int
    block_bytes: int

    def row_bytes(self, n_values: int) -> int:
        return n_values // self.block_size * self.block_bytes


@cache
def layouts() -> dict[int, TypeLayout]:
    """Every type that this build of ggml knows, by its number in a GGUF file."""
    ggml = ctypes.CDLL(str(_ggml_base()))
    ggml.ggml_type_name.restype = ctypes.c_char_p
    ggml.ggml_blck_size.restype = ctypes.c_int64
    ggml.ggml_type_size.restype = ctypes.c_size_t
    found: dict[int, TypeLayout] = {}
    for number in range(_MOST_TYPES):
        name = ggml.ggml_type_name(number)
        block = int(ggml.ggml_blck_size(number))
        if block > 0:  # a removed type keeps its number and has no size
            found[number] = TypeLayout(name.decode(), block, int(ggml.ggml_type_size(number)))
    return found


def _ggml_base() -> Path:
    """The library itself: importing llama_cpp to get at it would cost a second."""
    spec = find_spec("llama_cpp")
    assert spec is not None and spec.origin is not None, "llama-cpp-python is not installed"
    suffix = "dylib" if sys.platform == "darwin" else "so"
    return Path(spec.origin).parent / "lib" / f"libggml-base.{suffix}"
