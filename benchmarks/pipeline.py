"""A long prompt over two daemons with one core each, against one daemon with one core.

Chunks of the prompt follow one another through the ring, so both devices compute at the same time. The ring
is planned for one user's request: for many users' tokens the head, which computes the output too, gets
fewer layers, and a prompt takes longer.
Aim: 1.8 times faster, which is a ratio of at most 0.556.

    python -m benchmarks.pipeline
"""

from __future__ import annotations

import os

from benchmarks.compare import Comparison, Report, alternate, arguments, publish
from benchmarks.daemons import Daemons, Prompts
from benchmarks.models import chosen_model, model_arguments


def main() -> None:
    parser = arguments("A long prompt over two daemons against one, one core each.", rounds=5)
    parser.add_argument("--prompt", type=int, default=512, help="tokens (512)")
    model_arguments(parser)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        parser.error("this needs two cores")
    model = chosen_model(options)
    prompts = Prompts(model.n_vocab)
    with (
        Daemons(model.path, [(cores[0],), (cores[1],)], 1, "--objective", "latency") as two,
        Daemons(model.path, [(cores[0],)], 1) as one,
    ):
        subject, baseline = alternate(
            lambda: 1e3 * two.answer(prompts.take(options.prompt), 1).first_token_s,
            lambda: 1e3 * one.answer(prompts.take(options.prompt), 1).first_token_s,
            options.rounds,
            "prompt",
        )
        spans = ", ".join(f"[{hop.first},{hop.last})" for hop in two.plan.hops)
        chunk = two.plan.context.n_ubatch
    report = Report(
        "A long prompt over two devices",
        {
            "model": model.description,
            "windows": spans,
            "chunk": chunk,
        },
        [
            Comparison(
                f"first token after {options.prompt} tokens",
                "ms",
                "two daemons",
                "one daemon",
                subject,
                baseline,
                "at most 0.556",
            )
        ],
    )
    report.notes.append(f"Two daemons are {1 / report.comparisons[0].ratio:.2f} times as fast as one.")
    publish(report, options.json)


if __name__ == "__main__":
    main()
