"""One daemon alone against llama-cpp-python with the same file and threads: prefill and decode.

Both are taken as their users meet them: the daemon through its front door, the library through
`Llama.generate` with its own defaults. Aim: not slower. Both are started several times, since where in memory
a process happens to have its weights makes up to 4 % for as long as it lives.

    python -m benchmarks.single
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from llama_cpp import Llama

from benchmarks.compare import Comparison, Report, alternate, arguments, publish
from benchmarks.daemons import Daemons, Prompts, Timing
from benchmarks.models import chosen_model, model_arguments

Answer = Callable[[Sequence[int], int], Timing]

SHORT = 16  # tokens of the prompt that decode is measured after


class Library:
    """llama-cpp-python on the whole file."""

    def __init__(self, model: Path, n_ctx: int, threads: int, flash_attention: bool) -> None:
        self._llama = Llama(
            str(model),
            n_ctx=n_ctx,
            n_threads=threads,
            n_threads_batch=threads,
            flash_attn=flash_attention,
            verbose=False,
        )

    def answer(self, prompt: Sequence[int], max_tokens: int) -> Timing:
        self._llama.reset()
        began = time.perf_counter()
        first = last = 0.0
        for count, _ in enumerate(self._llama.generate(list(prompt), temp=0.0), start=1):
            last = time.perf_counter()
            first = first or last
            if count == max_tokens:
                break
        return Timing(first - began, max_tokens, last - first)

    def close(self) -> None:
        self._llama.close()


class Sides:
    """What both took, over several starts."""

    def __init__(self) -> None:
        self.values: tuple[tuple[float, ...], tuple[float, ...]] = (), ()

    def add(self, more: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
        self.values = self.values[0] + more[0], self.values[1] + more[1]


def main() -> None:
    parser = arguments("One daemon alone against llama-cpp-python.", rounds=3)
    parser.add_argument("--starts", type=int, default=5, help="of daemon and library (5)")
    parser.add_argument("--threads", type=int, default=2, help="of both (2)")
    parser.add_argument("--tokens", type=int, default=48, help="generated per measurement (48)")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prefill measurement (512)")
    parser.add_argument(
        "--flash-attention", action="store_true", help="in the library too (off is its default)"
    )
    model_arguments(parser)
    options = parser.parse_args()
    model = chosen_model(options)
    prompts = Prompts(model.n_vocab)
    decoded = Sides()
    filled = Sides()
    for start in range(options.starts):
        with (
            Daemons(model.path, [()], options.threads) as alone,
            closing(
                Library(model.path, alone.plan.context.n_ctx, options.threads, options.flash_attention)
            ) as library,
        ):

            def decode(answer: Answer) -> Callable[[], float]:
                return lambda: 1e3 * answer(prompts.take(SHORT), options.tokens).per_token_s

            def prefill(answer: Answer) -> Callable[[], float]:
                return lambda: 1e3 * answer(prompts.take(options.prompt), 1).first_token_s

            what = f"start {start + 1} of {options.starts},"
            decoded.add(
                alternate(decode(alone.answer), decode(library.answer), options.rounds, f"{what} decode")
            )
            filled.add(
                alternate(prefill(alone.answer), prefill(library.answer), options.rounds, f"{what} prefill")
            )
            chunk = alone.plan.context.n_ubatch
    names = ("edged", "llama-cpp-python")
    report = Report(
        "One daemon alone",
        {
            "model": model.description,
            "threads": options.threads,
            "starts": options.starts,
            "chunk": chunk,
        },
        [
            Comparison("decode, per token", "ms", *names, *decoded.values, "at most 1"),
            Comparison(f"prefill, {options.prompt} tokens", "ms", *names, *filled.values, "at most 1"),
        ],
    )
    publish(report, options.json)


if __name__ == "__main__":
    main()
