"""What a device's profile predicts for a window, against what a real window takes.

A window of some layers of a synthetic model is run with one token and with a chunk of a prompt. In the same
moment products with its type of weights, and attention, are measured as `edged profile` does. The ratio is
what a window takes besides: norms, activation functions, starting the graph.

    python -m benchmarks.prediction
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np

from benchmarks.compare import Comparison, Report, alternate, arguments, publish
from edged.backend import _native
from edged.backend.native import Meter, load_window
from edged.backend.window import Batch, KvOp
from edged.device.processors import LEAST_MEMORY, TYPE_MS
from edged.planning.context import CHUNK_IN_RING
from edged.planning.device_costs import CELL_BLOCK
from edged.planning.plan import ContextOptions
from edged.store.catalogue import Catalogue
from edged.store.compose import compose
from edged.store.importer import import_model
from tests.models.random_models import LLAMA_1B, write_random_model

TYPES = ("Q4_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4", "F16")
LAYERS = 4  # of the window; the model has one more at either end
TOKENS = 12  # per measurement; the usual one counts, since that is what an answer is made of
CHUNKS = 4


class RealWindow:
    """Layers [1, 1 + LAYERS) of a model with the widths of a 1B llama."""

    def __init__(self, folder: Path, weights: str, threads: int) -> None:
        shape = replace(LLAMA_1B, n_layers=LAYERS + 2, n_vocab=512)
        path = write_random_model(folder / f"{weights}.gguf", "llama", shape, weights)
        catalogue = Catalogue(folder / weights)
        manifest = import_model(path, catalogue)
        tensors = [tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name.startswith("blk.")]
        self.bytes = sum(int(tensor.n_bytes) for tensor in tensors) * LAYERS // shape.n_layers
        self.weights = sum(int(tensor.n_elements) for tensor in tensors) * LAYERS // shape.n_layers
        context = ContextOptions(n_ctx=512, n_seq_max=1, n_ubatch=CHUNK_IN_RING, flash_attention="off")
        # One thread's own time is what it would take if nothing else ran; of several it says nothing.
        self._clock = time.thread_time if threads == 1 else time.perf_counter
        self._window = load_window(compose(manifest, catalogue, 1, 1 + LAYERS), context, threads)
        path.unlink()

    def usual_ms(self, n_tokens: int, times: int) -> float:
        self._window.apply(KvOp("clear"))
        state = np.full((n_tokens, self._window.width), 0.1, np.float32)
        took = []
        for number in range(times):
            positions = np.arange(number * n_tokens, (number + 1) * n_tokens, dtype=np.int32)
            batch = Batch(np.zeros(n_tokens, np.int32), positions, np.zeros(n_tokens, np.bool_))
            began = self._clock()
            self._window.run(batch, state)
            took.append(self._clock() - began)
        return 1e3 * statistics.median(took)

    def close(self) -> None:
        self._window.close()


def main() -> None:
    parser = arguments("A window's compute against what the device's profile predicts.", rounds=5)
    parser.add_argument("--threads", type=int, default=1, help="(1)")
    parser.add_argument("--types", nargs="+", choices=TYPES, default=TYPES)
    options = parser.parse_args()
    meter = Meter("CPU", options.threads)
    names = {number: name for number, name, _, _ in _native.tensor_types()}
    report = Report("A window against its profile", {"layers": LAYERS, "threads": options.threads})
    for weights in options.types:
        name = names[gguf.GGMLQuantizationType[weights].value]
        with tempfile.TemporaryDirectory() as folder:
            window = RealWindow(Path(folder), weights, options.threads)
            for label, tokens, times in (("one token", 1, TOKENS), ("a chunk", CHUNK_IN_RING, CHUNKS)):
                report.comparisons.append(_compare(window, meter, name, options.rounds, label, tokens, times))
            window.close()
    publish(report, options.json)


def _compare(
    window: RealWindow, meter: Meter, ggml_type: str, rounds: int, label: str, tokens: int, times: int
) -> Comparison:
    def predicted() -> float:
        speed = meter.products(ggml_type, batch=CHUNK_IN_RING, milliseconds=TYPE_MS, memory=LEAST_MEMORY)
        assert speed is not None
        attention = meter.attention(tokens, depth=CELL_BLOCK, milliseconds=TYPE_MS)
        assert attention is not None
        operations = 4 * LLAMA_1B.n_embd * CELL_BLOCK * tokens * LAYERS  # of a cache with one block in use
        products = (
            window.bytes / speed.bandwidth if tokens == 1 else 2 * window.weights * tokens / speed.flops
        )
        return 1e3 * (products + operations / attention)

    subject, baseline = alternate(
        lambda: window.usual_ms(tokens, times), predicted, rounds, f"{ggml_type}, {label}"
    )
    return Comparison(f"{ggml_type}, {label}", "ms", "window", "profile", subject, baseline)


if __name__ == "__main__":
    main()
