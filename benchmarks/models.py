"""The synthetic models that benchmarks run: shapes of known llamas, random weights, written once and kept."""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from tests.models.architectures import Shape
from tests.models.random_models import LLAMA_1B, write_random_model

SHAPES: dict[str, tuple[str, Shape]] = {  # architecture, and dimensions
    "1B": ("llama", LLAMA_1B),
    "3B": ("llama", replace(LLAMA_1B, n_layers=28, n_embd=3072, n_heads=24)),
    "8B": ("llama", replace(LLAMA_1B, n_layers=32, n_embd=4096, n_ff=14336, tied=False)),
    "MoE": (
        "qwen3moe",
        replace(LLAMA_1B, n_layers=24, n_heads=16, n_ff=1536, n_experts=32, n_experts_used=4, n_vocab=64_000),
    ),
}
WEIGHTS = ("Q4_0", "Q4_K", "Q8_0", "F16")
OUTPUT = "Q8_0"
FEW_TOKENS = 1000  # of a given model's vocabulary that are certain to exist


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured."""

    path: Path
    description: str
    n_vocab: int  # token ids below it exist


def folder() -> Path:
    """Where large files are kept from one run to the next."""
    path = Path(tempfile.gettempdir()) / "edged-benchmarks"
    path.mkdir(exist_ok=True)
    return path


def model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", choices=SHAPES, default="1B", help="of the synthetic model (1B)")
    parser.add_argument("--weights", choices=WEIGHTS, default="Q4_0", help="of the synthetic model (Q4_0)")
    parser.add_argument("--model", type=Path, help="a GGUF instead of the synthetic one")


def chosen_model(options: argparse.Namespace) -> Subject:
    """The file that the flags of `model_arguments` ask for; a synthetic one is made if need be.

    Speed does not depend on the weights' values.
    """
    if options.model is not None:
        return Subject(options.model, options.model.name, FEW_TOKENS)
    size, weights = options.size, options.weights
    architecture, shape = SHAPES[size]
    path = folder() / f"{architecture}-{size}-{weights}-{OUTPUT}.gguf"
    if not path.exists():
        print(f"writing {path}", file=sys.stderr)
        partial = path.with_suffix(".partial")
        write_random_model(partial, architecture, shape, weights, OUTPUT)
        partial.rename(path)
    description = f"{architecture} {size}, {shape.n_layers} layers, {weights}, random weights"
    return Subject(path, description, shape.n_vocab)
