"""The synthetic model that benchmarks run: the shape of a 1B llama, random weights, written once and kept."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.models.random_models import LLAMA_1B, write_random_model

WEIGHTS, OUTPUT = "Q4_0", "Q8_0"
N_VOCAB = LLAMA_1B.n_vocab
DESCRIPTION = f"llama of 1.2B parameters, {LLAMA_1B.n_layers} layers, {WEIGHTS}, random weights"


def synthetic_model() -> Path:
    """A file in the temporary directory; speed does not depend on the weights' values."""
    path = Path(tempfile.gettempdir()) / "edged-benchmarks" / f"llama-1b-{WEIGHTS}-{OUTPUT}.gguf"
    if not path.exists():
        print(f"writing {path}", file=sys.stderr)
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial")
        write_random_model(partial, "llama", LLAMA_1B, WEIGHTS, OUTPUT)
        partial.rename(path)
    return path
