"""What the ring costs: three daemons on one machine against the bare compute of the same windows.

Two baselines. "Windows alone": this process loads the plan's windows and runs them one after another for
every token; no daemon, no frame, no network, no sampler. "Their compute": what the daemons' own metrics say
that their windows computed for the very same tokens, so that a disturbance of the machine hits both alike.
Aim: at most 5 % more per token.

    python -m benchmarks.ring_overhead
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.compare import Comparison, Report, alternate, arguments, publish
from benchmarks.daemons import Daemons, Prompts
from benchmarks.models import chosen_model, model_arguments
from edged.backend.native import NativeWindow, load_window
from edged.backend.window import Batch, KvOp
from edged.planning.plan import Plan
from edged.store.catalogue import Catalogue
from edged.store.compose import compose

AIM = "at most 1.05"


class BareWindows:
    """The windows of a plan, without a ring."""

    def __init__(self, home: Path, plan: Plan, threads: int) -> None:
        catalogue = Catalogue(home)
        manifest = catalogue.get(plan.model)
        assert manifest is not None
        self._chunk = plan.context.n_ubatch
        self._windows: list[NativeWindow] = [
            load_window(compose(manifest, catalogue, hop.first, hop.last), plan.context, threads)
            for hop in plan.hops
        ]

    def per_token_s(self, prompt: Sequence[int], steps: int) -> float:
        """Seconds inside the windows per generated token, after `prompt`."""
        for window in self._windows:
            window.apply(KvOp("clear"))
        for start in range(0, len(prompt), self._chunk):
            token, _ = self._step(prompt[start : start + self._chunk], start)
        spent = 0.0
        for position in range(len(prompt), len(prompt) + steps):
            token, seconds = self._step([token], position)
            spent += seconds
        return spent / steps

    def _step(self, tokens: Sequence[int], position: int) -> tuple[int, float]:
        count = len(tokens)
        outputs = np.zeros(count, np.bool_)
        outputs[-1] = True
        positions = np.arange(position, position + count, dtype=np.int32)
        batch = Batch(np.zeros(count, np.int32), positions, outputs)
        began = time.perf_counter()
        state: np.ndarray = np.array(tokens, np.int32)
        for window in self._windows[:-1]:
            state = window.run(batch, state)
        logits = self._windows[-1].run_last(batch, state)
        seconds = time.perf_counter() - began
        return int(np.argmax(logits[-1])), seconds

    def close(self) -> None:
        for window in self._windows:
            window.close()


def main() -> None:
    parser = arguments("What the ring costs per token, over the bare compute of its windows.", rounds=7)
    parser.add_argument("--devices", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="per daemon (1)")
    parser.add_argument("--tokens", type=int, default=48, help="generated per measurement (48)")
    model_arguments(parser)
    options = parser.parse_args()
    model = chosen_model(options)
    prompts = Prompts(model.n_vocab)
    computed: list[float] = []
    with Daemons(model.path, [()] * options.devices, options.threads) as ring:

        def per_token_ms() -> float:
            # A prompt of one token: then every token but the first is a decode step, as is the prompt.
            before = ring.compute_s()
            timing = ring.answer(prompts.take(1), options.tokens)
            computed.append(1e3 * (ring.compute_s() - before) / options.tokens)
            return 1e3 * timing.per_token_s

        bare = BareWindows(ring.home, ring.plan, options.threads)
        try:
            subject, baseline = alternate(
                per_token_ms,
                lambda: 1e3 * bare.per_token_s(prompts.take(1), options.tokens),
                options.rounds,
                "ring",
            )
        finally:
            bare.close()
        spans = ", ".join(f"[{hop.first},{hop.last})" for hop in ring.plan.hops)
    name = f"a token through {options.devices} daemons"
    report = Report(
        "Overhead of the ring",
        {
            "model": model.description,
            "windows": spans,
            "threads": options.threads,
            "tokens": options.tokens,
        },
        [
            Comparison(name, "ms", "ring", "windows alone", subject, baseline, AIM),
            Comparison(name, "ms", "ring", "their compute", subject, tuple(computed[1:]), AIM),
        ],
    )
    publish(report, options.json)


if __name__ == "__main__":
    main()
