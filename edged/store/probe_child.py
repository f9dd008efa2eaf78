"""The child of `edged.store.probe`: it may die of a model, and that is what it is for."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
from llama_cpp import llama_cpp as llama

from edged.backend.native import load_window
from edged.backend.window import Batch, Hidden, Tokens
from edged.device.local_device import memory_budget
from edged.errors import BrokenModelError, EdgedError, UnsupportedModelError, WindowError
from edged.planning.plan import ContextOptions
from edged.store.catalogue import Catalogue
from edged.store.compose import compose
from edged.store.manifest import Manifest
from edged.store.probe import Trial
from edged.store.vocabulary_check import check_loaded, check_vocabulary

_SAMPLE = "A home, ein Zuhause, μία οικία, 家。\n".encode()
_LOG_ERROR = 4  # GGML_LOG_LEVEL_ERROR, which the Python package does not name


def _main() -> None:
    request = json.loads(sys.stdin.buffer.readline())
    try:
        if request["do"] == "file":
            answer: dict[str, object] = asdict(_read_file(Path(request["path"])))
        else:
            _run_windows(Manifest.unpack(sys.stdin.buffer.read()), Catalogue(Path(request["home"])))
            answer = {}
    except EdgedError as error:
        answer = {"code": error.code, "message": error.message}
    print(json.dumps(answer), flush=True)


def _run_windows(manifest: Manifest, catalogue: Catalogue) -> None:
    _try_vocabulary(manifest, catalogue.path(manifest.vocabulary.sha256))
    last = manifest.n_layers - 1
    edges = [(0, 1), (last, last + 1)] if {1, last} <= set(manifest.boundaries) else [(0, last + 1)]
    weights = sum(part.weight_bytes for edge in edges for part in manifest.parts_for(*edge))
    if weights > memory_budget(cap=None, held=0):
        return
    # One token at position 0, and as little context as there can be.
    options = ContextOptions(n_ctx=32, n_seq_max=1, n_ubatch=16)
    batch = Batch(np.zeros(1, np.int32), np.zeros(1, np.int32), np.ones(1, np.bool_))
    state: Tokens | Hidden = np.zeros(1, np.int32)
    try:
        for first, end in edges:
            window = load_window(compose(manifest, catalogue, first, end), options, n_threads=1)
            try:
                state = (window.run if end <= last else window.run_last)(batch, state)
            finally:
                window.close()
    except WindowError as error:
        raise BrokenModelError(f"{manifest.name} was refused by llama.cpp: {error.message}") from None
    if not np.isfinite(state).any():
        raise BrokenModelError(f"{manifest.name} was refused: what it computes are not numbers")


def _try_vocabulary(manifest: Manifest, path: Path) -> None:
    check_vocabulary(path, manifest.name)
    options = llama.llama_model_default_params()
    options.vocab_only = True
    model = llama.llama_model_load_from_file(str(path).encode(), options)
    if not model:
        raise BrokenModelError(f"{manifest.name} was refused by llama.cpp: its vocabulary cannot be read")
    vocabulary = llama.llama_model_get_vocab(model)
    check_loaded(vocabulary, manifest.name)
    tokens = (llama.llama_token * (4 * len(_SAMPLE)))()
    count = llama.llama_tokenize(vocabulary, _SAMPLE, len(_SAMPLE), tokens, len(tokens), True, True)
    if not 0 < count <= len(tokens):
        raise BrokenModelError(f"{manifest.name} was refused: its vocabulary cannot express plain text")
    llama.llama_model_free(model)


def _read_file(path: Path) -> Trial:
    check_vocabulary(path, path.name)
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
