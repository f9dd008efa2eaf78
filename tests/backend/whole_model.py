"""The reference: llama-cpp-python running the whole file through its low-level interface."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt

KV_TYPES = {"f16": llama_cpp.GGML_TYPE_F16, "q8_0": llama_cpp.GGML_TYPE_Q8_0, "f32": llama_cpp.GGML_TYPE_F32}
FLASH = {"auto": -1, "off": 0, "on": 1}

Row = tuple[int, int, int]  # sequence, position, token


class WholeModel:
    """One model and context; `decode` gives the logits of a batch, row by row."""

    def __init__(
        self,
        path: Path,
        *,
        n_ctx: int,
        n_seq_max: int,
        n_ubatch: int,
        n_threads: int,
        kv_type: str,
        flash_attention: str,
    ) -> None:
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        model_params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = -(-n_ctx // 256) * 256 * n_seq_max
        params.n_seq_max = n_seq_max
        params.n_batch = params.n_ubatch = n_ubatch
        params.n_threads = params.n_threads_batch = n_threads
        params.type_k = params.type_v = KV_TYPES[kv_type]
        params.flash_attn_type = FLASH[flash_attention]
        params.kv_unified = False
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        assert self.context
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(n_ubatch, 0, 1)

    def decode(self, rows: Sequence[Row], last_only: bool = False) -> npt.NDArray[np.float32]:
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (seq, position, token) in enumerate(rows):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = seq
            batch.logits[i] = not last_only or i == len(rows) - 1
        assert llama_cpp.llama_decode(self.context, batch) == 0
        found = [
            np.ctypeslib.as_array(
                ctypes.cast(llama_cpp.llama_get_logits_ith(self.context, i), ctypes.POINTER(ctypes.c_float)),
                (self.n_vocab,),
            ).copy()
            for i in range(len(rows))
            if batch.logits[i]
        ]
        return np.stack(found)

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def close(self) -> None:
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)
