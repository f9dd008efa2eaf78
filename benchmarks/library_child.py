"""llama-cpp-python decoding inside a limited device: one line of JSON per token, with what it cost.

    python -m benchmarks.library_child MODEL --tokens 8 --threads 1

The file is mapped, as by default. `--repack` leaves llama.cpp's repacking on, which is the default too: it
copies the matrices into ordinary memory, and a model larger than memory ends in an OOM kill.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import llama_cpp
from llama_cpp import Llama

from tests.lab.usage import usage_of


def without_repacking() -> None:
    """llama-cpp-python has no argument for it: changes the defaults that `Llama` starts from."""
    original = llama_cpp.llama_model_default_params

    def defaults() -> llama_cpp.llama_model_params:
        params = original()
        params.use_extra_bufts = False
        return params

    llama_cpp.llama_cpp.llama_model_default_params = defaults


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompt", required=True, help="token ids, with commas")
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--repack", action="store_true")
    options = parser.parse_args()
    if not options.repack:
        without_repacking()
    llama = Llama(
        str(options.model),
        n_ctx=options.ctx,
        n_threads=options.threads,
        n_threads_batch=options.threads,
        flash_attn=False,
        verbose=False,
    )
    prompt = [int(token) for token in options.prompt.split(",")]
    began, before = time.perf_counter(), usage_of()
    for count, token in enumerate(llama.generate(prompt, temp=0.0), start=1):
        cost, took = usage_of() - before, time.perf_counter() - began
        print(
            json.dumps(
                {"token": token, "seconds": took, "read": cost.read_bytes, "faults": cost.major_faults}
            )
        )
        if count == options.tokens:
            break
        began, before = time.perf_counter(), usage_of()


if __name__ == "__main__":
    main()
