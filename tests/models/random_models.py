"""GGUF models of any size with random weights: exactness and speed do not depend on what the values mean."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from tests.models.architectures import FAMILIES, Shape

LLAMA_1B = Shape(
    n_layers=16, n_embd=2048, n_heads=32, n_kv_heads=8, n_ff=8192, n_vocab=128_256, n_ctx=8192, tied=True
)

_SPECIAL = ["<unk>", "<s>", "</s>"]
_TILE_VALUES = 2**22  # of the values that a large model repeats


def write_random_model(
    path: Path,
    architecture: str = "llama",
    shape: Shape | None = None,
    weights: str = "F32",
    output: str | None = None,
    seed: int = 0,
    hyperparameters: dict[str, object] | None = None,
    split_max_tensors: int = 0,
) -> Path:
    """Write a model and return its path; split, if asked, into files that gguf-py names after `path`.

    `weights` is the ggml type of all matrices whose rows it divides (others stay f32), `output` that of the
    embedding and output matrices. Vocabulary: three special tokens, 256 bytes, and fillers.
    """
    shape = shape or Shape()
    family = FAMILIES[architecture]
    if shape.tied and not family.may_tie:
        raise ValueError(f"{architecture} has an output matrix of its own")
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=split_max_tensors)
    _write_metadata(writer, architecture, shape, {**family.extra(shape), **(hyperparameters or {})})
    tiles: dict[str, np.ndarray] = {}
    for name, dimensions in family.tensors(shape):
        kind = (output or weights) if name in ("token_embd.weight", "output.weight") else weights
        block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0]
        small = "conv1d" in name or name.endswith(("_a", "_inp.weight"))
        if small or len(dimensions) == 1 or dimensions[0] % block:
            writer.add_tensor(name, small_values(rng, name, dimensions))
        else:
            _add_matrix(writer, rng, tiles, name, dimensions, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_metadata(
    writer: gguf.GGUFWriter, architecture: str, shape: Shape, extra: dict[str, object]
) -> None:
    counts = {
        "block_count": shape.n_layers,
        "context_length": shape.n_ctx,
        "embedding_length": shape.n_embd,
        "feed_forward_length": shape.n_ff,
        "attention.head_count": shape.n_heads,
        "attention.head_count_kv": shape.n_kv_heads,
        "rope.dimension_count": shape.head,
        **extra,
    }
    for name, value in counts.items():
        key = f"{architecture}.{name}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_array(key, value)
    write_vocabulary(writer, shape.n_vocab)


def write_vocabulary(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    """Three special tokens, 256 bytes, and fillers; and a plain chat template."""
    tokens = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))][:n_vocab]
    tokens += [f"▁w{index}" for index in range(len(tokens), n_vocab)]
    kinds = [2, 3, 3, *[6] * 256][:n_vocab]
    kinds += [1] * (n_vocab - len(kinds))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(index) for index in range(n_vocab)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")


def small_values(rng: np.random.Generator, name: str, dimensions: tuple[int, ...]) -> np.ndarray:
    """A vector or a small matrix in f32, with values that keep the model's state within bounds."""
    values = rng.standard_normal(dimensions[::-1], dtype=np.float32)
    if name.endswith("ssm_a"):  # how fast a state decays: below zero
        return -np.exp(values)
    if name.startswith("rope_"):
        return (1 + 0.5 * np.abs(values)).astype(np.float32)
    if "norm" in name and name.endswith(".weight"):
        return (1 + 0.1 * values).astype(np.float32)
    return values * np.float32(0.1 if len(dimensions) == 1 else dimensions[0] ** -0.5)


def _add_matrix(
    writer: gguf.GGUFWriter,
    rng: np.random.Generator,
    tiles: dict[str, np.ndarray],
    name: str,
    dimensions: tuple[int, ...],
    kind: str,
) -> None:
    values = int(np.prod(dimensions))
    raw_type = gguf.GGMLQuantizationType[kind]
    block, block_bytes = gguf.GGML_QUANT_SIZES[raw_type]
    row_bytes = dimensions[0] // block * block_bytes
    if values <= 2**18:  # a small model: true random values, quantised as usual
        exact = small_values(rng, name, dimensions)
        data = exact if kind == "F32" else gguf.quants.quantize(exact, raw_type)
    else:  # a large one: the same few million values again and again, from another place in each tensor
        tile = tiles.get(kind)
        if tile is None:
            tile = tiles[kind] = _tile(rng, kind)
        start = int(rng.integers(_TILE_VALUES // block)) * block_bytes
        data = np.resize(np.roll(tile, -start), values // block * block_bytes)
        data = data.view(np.float32) if kind == "F32" else data
    if kind == "F32":
        writer.add_tensor(name, data.reshape(dimensions[::-1]))
    else:
        rows = data.view(np.uint8).reshape(*dimensions[:0:-1], row_bytes)
        writer.add_tensor(name, rows, raw_dtype=raw_type)


def _tile(rng: np.random.Generator, kind: str) -> np.ndarray:
    """Bytes of valid blocks: for types whose quantiser is slow in Python, random bits with a sane scale."""
    raw_type = gguf.GGMLQuantizationType[kind]
    block, block_bytes = gguf.GGML_QUANT_SIZES[raw_type]
    if kind == "F32":
        return (rng.standard_normal(_TILE_VALUES, dtype=np.float32) * np.float32(0.02)).view(np.uint8)
    if kind == "F16":
        return (rng.standard_normal(_TILE_VALUES, dtype=np.float32) * 0.02).astype(np.float16).view(np.uint8)
    blocks = rng.integers(0, 256, (_TILE_VALUES // block, block_bytes), dtype=np.uint8)
    if kind == "MXFP4":
        blocks[:, 0] = 118  # the exponent of a power of two: 2 ** -9
        return blocks.reshape(-1)
    signs = rng.choice(np.array([-0.002, 0.002], np.float16), len(blocks))  # no mean that drowns the rest
    scale = signs.view(np.uint8).reshape(-1, 2)
    starts = {
        **{"Q4_0": (0,), "Q4_1": (0, 2), "Q8_0": (0,), "IQ4_NL": (0,)},
        **{"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)},
    }
    for start in starts[kind]:
        blocks[:, start : start + 2] = scale
    return blocks.reshape(-1)


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description="Write a random model of the shape of a 1B llama.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--weights", default="Q4_0")
    parser.add_argument("--output", default="Q8_0")
    arguments = parser.parse_args()
    write_random_model(arguments.path, "llama", LLAMA_1B, arguments.weights, arguments.output)
