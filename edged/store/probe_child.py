"""The child of `edged.store.probe`: it may die of a model, and that is what it is for."""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from llama_cpp import llama_cpp as llama
from pydantic import TypeAdapter

from edged.backend.native import load_window
from edged.backend.source import WindowSource
from edged.backend.window import Batch, Hidden, Tokens
from edged.device.local_device import memory_budget
from edged.errors import BrokenModelError, EdgedError, UnsupportedModelError, WindowError
from edged.planning.plan import ContextOptions
from edged.store.catalogue import Catalogue
from edged.store.compose import compose
from edged.store.manifest import Manifest
from edged.store.probe import Trial
from edged.store.vocabulary_check import check_loaded, check_vocabulary
from edged.store.window_check import why_not_in_windows

_SAMPLES = (
    "A home, ein Zuhause, μία οικία, 家。\n",
    "  two   spaces\t\ttabs \r\n\n  x = 'y'  ",
    "".join(map(chr, range(0x180))) + "e\u0301 \ufeff\u2028\ue000😀👩‍👧 \U0010ffff",
)
_WITHOUT_WEIGHTS = 4 * 2**30  # bytes; a vocabulary and its tree, a graph, and what the GPU's driver takes
_LOG_ERROR = 4  # GGML_LOG_LEVEL_ERROR, which the Python package does not name


def _main() -> None:
    request = json.loads(sys.stdin.buffer.readline())
    holds_weights = request["do"] in ("windows", "compare")
    limit_harm(_WITHOUT_WEIGHTS + (memory_budget(cap=None, held=0) if holds_weights else 0))
    print(json.dumps(answer(request, sys.stdin.buffer.read())), flush=True)


def answer(request: dict[str, Any], body: bytes) -> dict[str, Any]:
    """What the parent is told; what is wrong with the model is among it, as `code` and `message`."""
    try:
        match request["do"]:
            case "file":
                return asdict(_read_file(Path(request["path"])))
            case "windows":
                _run_windows(Manifest.unpack(body), Catalogue(Path(request["home"])))
            case "compare":
                catalogue = Catalogue(Path(request["home"]))
                budget = memory_budget(cap=None, held=0)
                return {"why": why_not_in_windows(Manifest.unpack(body), catalogue, budget)}
            case "rehearse":
                _rehearse(request, body)
    except EdgedError as error:
        return {"code": error.code, "message": error.message}
    return {}


def limit_harm(memory: int) -> None:
    """At most so many bytes of memory, and the first to go where the system runs out of it."""
    with contextlib.suppress(OSError, ValueError):  # there may be a lower limit already
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _rehearse(request: dict[str, Any], body: bytes) -> None:
    source = TypeAdapter(WindowSource).validate_python(msgpack.unpackb(body))
    context = ContextOptions.model_validate(request["context"])
    load_window(source, context, request["n_threads"], request["n_gpu_layers"], rehearsal=True).close()


def _run_windows(manifest: Manifest, catalogue: Catalogue) -> None:
    if catalogue.has(manifest.vocabulary.sha256):
        _try_vocabulary(manifest, catalogue.path(manifest.vocabulary.sha256))
    budget = memory_budget(cap=None, held=0)
    # One token at position 0, and as little context as there can be.
    options = ContextOptions(n_ctx=32, n_seq_max=1, n_ubatch=16)
    batch = Batch(np.zeros(1, np.int32), np.zeros(1, np.int32), np.ones(1, np.bool_))
    state: Tokens | Hidden = np.zeros(1, np.int32)
    try:
        for first, end in _windows_to_try(manifest, catalogue):
            if sum(part.weight_bytes for part in manifest.parts_for(first, end)) > budget:
                continue
            source = compose(manifest, catalogue, first, end)
            if first > 0 and state.ndim == 1:  # nothing has come in front of it
                state = np.zeros((1, source.width), np.float32)
            window = load_window(source, options, n_threads=1)
            try:
                state = (window.run if end < manifest.n_layers else window.run_last)(batch, state)
            finally:
                window.close()
            if not np.isfinite(state).any():
                raise BrokenModelError(f"{manifest.name} was refused: what it computes are not numbers")
    except WindowError as error:
        raise BrokenModelError(f"{manifest.name} was refused by llama.cpp: {error.message}") from None


def _windows_to_try(manifest: Manifest, catalogue: Catalogue) -> list[tuple[int, int]]:
    """The smallest windows with the first and the last layer, and with one of every other kind of layer.

    A device that runs a part of a model only has the layers of that part.
    """
    tried: set[object] = set()
    chosen = []
    for first, last in pairwise([0, *manifest.boundaries, manifest.n_layers]):
        if catalogue.missing(manifest.parts_for(first, last)):
            continue
        kinds = [_kind(manifest, index) for index in range(first, last)]
        if first == 0 or last == manifest.n_layers or not tried.issuperset(kinds):
            chosen.append((first, last))
            tried.update(kinds)
    return chosen


def _kind(manifest: Manifest, index: int) -> object:
    """What two layers must have in common for one to be computed as the other is."""
    tensors = tuple(
        (tensor.name.partition(f"blk.{index}.")[2], tensor.ggml_type, tensor.shape)
        for tensor in manifest.layer(index).tensors
    )
    values = tuple(
        entry.value[index]
        for entry in manifest.metadata
        if isinstance(entry.value, tuple) and len(entry.value) == manifest.n_layers
    )
    return tensors, values


def _try_vocabulary(manifest: Manifest, path: Path) -> None:
    check_vocabulary(path, manifest.name)
    options = llama.llama_model_default_params()
    options.vocab_only = True
    model = llama.llama_model_load_from_file(str(path).encode(), options)
    if not model:
        raise BrokenModelError(f"{manifest.name} was refused by llama.cpp: its vocabulary cannot be read")
    vocabulary = llama.llama_model_get_vocab(model)
    check_loaded(vocabulary, manifest.name)
    for sample in map(str.encode, _SAMPLES):
        tokens = (llama.llama_token * (8 * len(sample)))()
        count = llama.llama_tokenize(vocabulary, sample, len(sample), tokens, len(tokens), True, True)
        if not 0 < count <= len(tokens):
            raise BrokenModelError(f"{manifest.name} was refused: its vocabulary cannot express plain text")
    llama.llama_model_free(model)


def _read_file(path: Path) -> Trial:
    check_vocabulary(path, path.name)
    return read_header(path)


def read_header(path: Path) -> Trial:
    """What libllama makes of a model's metadata and tensor shapes. Raises ModelError, or ends the process."""
    said: list[str] = []

    def keep(level: int, text: bytes, _data: object) -> None:
        if level == _LOG_ERROR:
            said.append(text.decode("utf-8", "replace").strip())

    listener = llama.llama_log_callback(keep)
    llama.llama_log_set(listener, None)
    llama.llama_backend_init()
    options = llama.llama_model_default_params()
    options.no_alloc = True
    options.load_mode = llama.LLAMA_LOAD_MODE_NONE
    model = llama.llama_model_load_from_file(str(path).encode(), options)
    if not model:
        fault = next((line for line in said if line), "without saying why")
        if "unknown model architecture" in fault:
            raise UnsupportedModelError(f"{path.name} was refused: {_plain(fault)}")
        raise BrokenModelError(f"{path.name} was refused by llama.cpp: {_plain(fault)}")
    if llama.llama_model_has_encoder(model) or not llama.llama_model_has_decoder(model):
        raise UnsupportedModelError(f"{path.name} is not a model that continues text")
    recurrent = llama.llama_model_is_recurrent(model) or llama.llama_model_is_hybrid(model)
    return Trial(
        n_vocab=int(llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))), recurrent=bool(recurrent)
    )


def _plain(fault: str) -> str:
    """A log line without the functions' names before it."""
    for prefix in ("llama_model_load: ", "error loading model: ", "error loading model architecture: "):
        fault = fault.removeprefix(prefix)
    return fault.removesuffix("\n")


if __name__ == "__main__":
    _main()
