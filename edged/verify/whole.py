"""The reference: libllama runs the whole model, from the file as it is where there is one."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from llama_cpp import llama_cpp as llama

from edged.backend.native import NativeWindow
from edged.backend.window import KvOp, Logits
from edged.errors import UnsupportedModelError, WindowError
from edged.planning.plan import ContextOptions
from edged.store.ggml_types import layouts
from edged.verify.script import Frame, Rollback, Step

_CELLS = 256  # libllama rounds a sequence's cells up to a multiple of this, as edged's windows do
_LOG_ERROR = 4  # GGML_LOG_LEVEL_ERROR, which the Python package does not name
_FLASH = {"off": 0, "on": 1}


class Whole(Protocol):
    """A whole model with a cache of its own. Both methods raise WindowError."""

    def decode(self, frame: Frame) -> Logits: ...

    def roll_back(self, step: Rollback) -> bool:
        """False where the model cannot."""
        ...


class WholeWindow:
    """A model of the store as one window: all its tensors and metadata as they were imported."""

    def __init__(self, window: NativeWindow) -> None:
        self._window = window

    def decode(self, frame: Frame) -> Logits:
        return self._window.run_last(frame.batch, frame.ids)

    def roll_back(self, step: Rollback) -> bool:
        return self._window.apply(KvOp("remove", seq=step.seq, p0=step.start))


class WholeFile:
    """A model file as llama-cpp-python runs it: nothing of edged's windows takes part.

    Settings are those of `edged.backend.native.load_window`: the same kernels, threads and kind of cache.
    """

    def __init__(self, path: Path, context: ContextOptions, n_threads: int) -> None:
        self._said: list[str] = []
        self._listener = llama.llama_log_callback(self._hear)
        llama.llama_log_set(self._listener, None)
        llama.llama_backend_init()
        self._model = self._load(path)
        self._context = None
        try:
            self._check()
            self._context = self._open(context, n_threads)
            self._n_vocab = int(llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model)))
            self._batch = llama.llama_batch_init(context.n_ubatch, 0, 1)
        except BaseException:
            self._free()
            raise

    def _load(self, path: Path) -> object:
        options = llama.llama_model_default_params()
        options.load_mode = llama.LLAMA_LOAD_MODE_NONE
        options.n_gpu_layers = 0
        none = (ctypes.c_void_p * 1)(None)  # a list of devices that ends at once
        options.devices = ctypes.addressof(none)
        model = llama.llama_model_load_from_file(str(path).encode(), options)
        if not model:
            raise WindowError(f"llama.cpp does not load {path.name}: {self._fault()}")
        return model

    def _check(self) -> None:
        if llama.llama_model_has_encoder(self._model) or not llama.llama_model_has_decoder(self._model):
            raise UnsupportedModelError("it is not a model that continues text")

    def _open(self, context: ContextOptions, n_threads: int) -> object:
        options = llama.llama_context_default_params()
        options.n_ctx = -(-context.n_ctx // _CELLS) * _CELLS * context.n_seq_max
        options.n_batch = options.n_ubatch = context.n_ubatch
        options.n_seq_max = context.n_seq_max
        options.n_threads = options.n_threads_batch = n_threads
        options.flash_attn_type = _FLASH[context.flash_attention]
        kinds = {layout.name: number for number, layout in layouts().items()}
        options.type_k = options.type_v = kinds[context.kv_type]
        options.kv_unified = False
        options.offload_kqv = options.op_offload = False
        opened = llama.llama_init_from_model(self._model, options)
        if not opened:
            raise WindowError(f"llama.cpp makes no context for the model: {self._fault()}")
        if not llama.llama_get_memory(opened):
            llama.llama_free(opened)
            raise UnsupportedModelError("it keeps no cache of its past, so it does not continue text")
        return opened

    def decode(self, frame: Frame) -> Logits:
        batch, count = self._batch, len(frame.tokens)
        batch.n_tokens = count
        for row, token in enumerate(frame.tokens):
            batch.token[row] = token
            batch.pos[row] = frame.start + row
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = frame.seq
            batch.logits[row] = row in frame.outputs
        status = llama.llama_decode(self._context, batch)
        if status != 0:
            raise WindowError(f"llama.cpp cannot compute with the whole model ({status}): {self._fault()}")
        rows = [
            np.ctypeslib.as_array(llama.llama_get_logits_ith(self._context, row), (self._n_vocab,)).copy()
            for row in frame.outputs
        ]
        return np.stack(rows)

    def roll_back(self, step: Rollback) -> bool:
        memory = llama.llama_get_memory(self._context)
        return bool(llama.llama_memory_seq_rm(memory, step.seq, step.start, -1))

    def close(self) -> None:
        if self._context is not None:
            llama.llama_batch_free(self._batch)
        self._free()

    def _free(self) -> None:
        if self._context is not None:
            llama.llama_free(self._context)
            self._context = None
        if self._model is not None:
            llama.llama_model_free(self._model)
            self._model = None

    def _hear(self, level: int, text: bytes, _data: object) -> None:
        if level == _LOG_ERROR:
            self._said.append(text.decode("utf-8", "replace").strip())

    def _fault(self) -> str:
        return next((line for line in self._said if line), "without saying why")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def logits_of(whole: Whole, script: tuple[Step, ...]) -> Iterator[Logits]:
    """The wanted logits of each frame (n_outputs, n_vocab); ends at a rollback that the model refuses."""
    for step in script:
        if isinstance(step, Rollback):
            if not whole.roll_back(step):
                return
        else:
            yield whole.decode(step)
