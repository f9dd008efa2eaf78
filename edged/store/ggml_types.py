"""How many bytes a tensor of each ggml type takes, asked of the ggml that will compute with it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import edged.backend._native as native


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
    return {number: TypeLayout(name, size, count) for number, name, size, count in native.tensor_types()}
