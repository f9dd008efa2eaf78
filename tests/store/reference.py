"""What llama.cpp itself makes of a file, through llama-cpp-python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from llama_cpp import llama_cpp as llama


def reference_logits(path: Path, tokens: np.ndarray, prompt: int, n_ctx: int) -> np.ndarray:
    """Logits (n_tokens, n_vocab) of the whole file: `prompt` tokens in one batch, then one by one."""
    llama.llama_backend_init()
    options = llama.llama_model_default_params()
    options.load_mode = llama.LLAMA_LOAD_MODE_NONE
    model = llama.llama_model_load_from_file(str(path).encode(), options)
    assert model, path
    context_options = llama.llama_context_default_params()
    context_options.n_ctx = n_ctx
    context_options.n_batch = context_options.n_ubatch = n_ctx
    context_options.n_threads = context_options.n_threads_batch = 1
    context_options.flash_attn_type = 0
    context = llama.llama_init_from_model(model, context_options)
    assert context
    n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    rows = []
    try:
        for start, end in [(0, prompt), *((at, at + 1) for at in range(prompt, len(tokens)))]:
            batch = llama.llama_batch_init(end - start, 0, 1)
            batch.n_tokens = end - start
            for row, at in enumerate(range(start, end)):
                batch.token[row] = int(tokens[at])
                batch.pos[row] = at
                batch.n_seq_id[row] = 1
                batch.seq_id[row][0] = 0
                batch.logits[row] = 1
            assert llama.llama_decode(context, batch) == 0
            found = np.ctypeslib.as_array(llama.llama_get_logits(context), shape=(end - start, n_vocab))
            rows.append(found.copy())
            llama.llama_batch_free(batch)
    finally:
        llama.llama_free(context)
        llama.llama_model_free(model)
    return np.concatenate(rows)
