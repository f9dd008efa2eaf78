"""The models of decoders.toml, with random weights of any type."""

from __future__ import annotations

import ctypes
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from llama_cpp._ggml import libggml

from tests.models.random_models import small_values, write_vocabulary

N_VOCAB = 288
N_CTX = 256

_OWN_ROWS = 61  # of a matrix; the others repeat them, and being a prime it makes no two experts alike

# What llama.cpp's own quantiser leaves as it is.
_KEPT = (
    "norm",
    "conv",
    "rope_",
    "ffn_gate_inp",
    "position_embd",
    "time_mix_w",
    "time_mix_first",
    "lerp",
    "decay",
)


@dataclass(frozen=True)
class Decoder:
    """One section of the table, read."""

    name: str
    architecture: str
    n_layers: int
    n_embd: int
    hyperparameters: dict[str, Any] = field(hash=False)
    tensors: tuple[tuple[str, tuple[int, ...]], ...]  # names in full, shapes in GGUF order

    @property
    def tied(self) -> bool:
        return all(name != "output.weight" for name, _ in self.tensors)


@cache
def decoders() -> dict[str, Decoder]:
    with Path(__file__).with_name("decoders.toml").open("rb") as file:
        table = tomllib.load(file)
    defaults = table.pop("defaults")
    return {name: _decoder(name, dict(section), defaults) for name, section in table.items()}


def _decoder(name: str, section: dict[str, Any], defaults: dict[str, Any]) -> Decoder:
    lines = section.pop("tensors").split("\n")
    architecture = section.pop("architecture", name)
    n_layers = section.pop("n_layers", 6)
    n_embd = section.pop("n_embd", 256)
    found = [one for line in lines if line for one in _tensors(line.split(), n_layers)]
    hyperparameters = {**_flat(defaults), **_flat(section)}
    return Decoder(name, architecture, n_layers, n_embd, hyperparameters, tuple(found))


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            found.update(_flat(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = value
    return found


def _tensors(line: list[str], n_layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    layers, dimensions, *names = line
    shape = tuple(N_VOCAB if extent == "V" else int(extent) for extent in dimensions.split("x"))
    for at in _places(layers, n_layers):
        for name in names:
            bare = name.removesuffix("=")
            yield at + (bare if bare != name or name.endswith(".bias") else f"{name}.weight"), shape


def _places(layers: str, n_layers: int) -> list[str]:
    every = range(n_layers)
    match layers:
        case "-":
            return [""]
        case "*":
            chosen = list(every)
        case "even" | "odd":
            chosen = list(every[layers == "odd" :: 2])
        case _ if layers.endswith("-"):
            chosen = list(every[int(layers[:-1]) :])
        case _:
            chosen = [int(one) for one in layers.split(",")]
    return [f"blk.{index}." for index in chosen]


def write_decoder(
    path: Path,
    name: str,
    weights: str = "F32",
    hyperparameters: dict[str, Any] | None = None,
    tied: bool = False,
    seed: int = 0,
) -> Path:
    """Write the model `name` of the table and return its path.

    `weights` is the ggml type of the matrices whose rows it divides; of others Q8_0, where that does, or F32.
    `hyperparameters` change the table's; None takes one away. `tied` leaves out the output matrix.
    """
    decoder = decoders()[name]
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, decoder.architecture)
    _write_metadata(writer, decoder, hyperparameters or {})
    for tensor, shape in decoder.tensors:
        if tied and tensor == "output.weight":
            continue
        kind = _type_of(tensor, shape, weights)
        *rows, width = shape[::-1]
        own = min(int(np.prod(rows)), _OWN_ROWS)
        values = small_values(rng, tensor, (width, own) if rows else shape)
        data = values if kind == "F32" else _quantised(values, kind)
        data = np.resize(data, (*rows, data.shape[-1]))  # repeats the rows
        writer.add_tensor(tensor, data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_metadata(writer: gguf.GGUFWriter, decoder: Decoder, changed: dict[str, Any]) -> None:
    counts = {
        "block_count": decoder.n_layers,
        "embedding_length": decoder.n_embd,
        "context_length": N_CTX,
        **decoder.hyperparameters,
        **changed,
    }
    for name, value in counts.items():
        key = name[1:] if name.startswith("=") else f"{decoder.architecture}.{name}"
        match value:
            case None:
                pass
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case str():
                writer.add_string(key, value)
            case float():
                writer.add_float32(key, value)
            case _:
                writer.add_array(key, value)
    write_vocabulary(writer, N_VOCAB)


def _type_of(name: str, shape: tuple[int, ...], wanted: str) -> str:
    if len(shape) < 2 or min(shape[:2]) < 32 or not name.endswith(".weight") or any(k in name for k in _KEPT):
        return "F32"
    for kind in (wanted, "Q8_0"):
        if shape[0] % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0] == 0:
            return kind
    return "F32"


def _quantised(values: np.ndarray, kind: str) -> np.ndarray:
    """Bytes of `values` as ggml itself packs them, rows along the last axis."""
    raw_type = gguf.GGMLQuantizationType[kind]
    block, block_bytes = gguf.GGML_QUANT_SIZES[raw_type]
    *rows, width = values.shape
    packed = np.empty((*rows, width // block * block_bytes), np.uint8)
    pack = libggml.ggml_quantize_chunk
    pack.restype = ctypes.c_size_t
    pack.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    source = np.ascontiguousarray(values, np.float32)
    written = pack(raw_type.value, source.ctypes.data, packed.ctypes.data, 0, int(np.prod(rows)), width, None)
    assert written == packed.nbytes
    return packed
