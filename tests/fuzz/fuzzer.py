"""Spoils models at random and sees that they are refused, or that using them as a daemon does goes well.

`python -m tests.fuzz.fuzzer --seconds 900 --seed 7 [MODEL ...]` goes on for that long and ends with
status 1 if anything was found; `--first CASE --cases 1` does one case again, and --keep keeps the files.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.forked import Outcome
from tests.fuzz.image import take_apart
from tests.fuzz.mutations import spoil
from tests.fuzz.ordeal import probing_in_forks, survives
from tests.models.architectures import FAMILIES, Shape
from tests.models.random_models import write_random_model

_LONGEST_MESSAGE = 600


@dataclass
class Finding:
    base: str
    case: int
    mutations: str
    stage: str
    outcome: Outcome

    def line(self) -> str:
        said = self.outcome.said.splitlines()[-1:] if self.outcome.ending == "died" else []
        how = f"{self.outcome.ending} {self.outcome.message} {said}"
        return f"{self.base} #{self.case} {self.stage}: {how} <- {self.mutations}"


def fault(outcome: Outcome) -> bool:
    """Whether an ending is one that must not be: all but success and one clear line."""
    if outcome.ending == "done":
        return False
    one_line = len(outcome.message.splitlines()) == 1 and len(outcome.message) <= _LONGEST_MESSAGE
    return not (outcome.ending == "refused" and one_line and outcome.message.isprintable())


def bases(folder: Path) -> dict[str, Path]:
    """Small sound models of every family."""
    found = {}
    for name in FAMILIES:
        shape = Shape(n_layers=4, n_embd=64, n_ff=64)
        found[name] = write_random_model(folder / f"{name}.gguf", name, shape)
    return found


class Fuzzer:
    def __init__(self, seed: int, models: dict[str, Path], folder: Path, keep: Path | None = None) -> None:
        self._seed = seed
        self._models = models
        self._folder = folder
        self._keep = keep
        self.verbose = False
        self.endings: Counter[str] = Counter()
        self.findings: list[Finding] = []

    def case(self, number: int) -> None:
        rng = random.Random(f"{self._seed}/{number}")
        base = rng.choice(sorted(self._models))
        image, mutations = spoil(rng, take_apart(self._models[base]))
        path = self._folder / "spoilt.gguf"
        path.write_bytes(image.built())
        taken, used = survives(path, self._folder / "home", rng)
        self.endings[f"import {taken.ending}"] += 1
        if used is not None:
            self.endings[f"use {used.ending}"] += 1
            if self.verbose and used.ending == "refused":
                print(f"{base} #{number}, used: {used.message} <- {mutations}", flush=True)
        for stage, outcome in (("import", taken), ("use", used)):
            if outcome is not None and fault(outcome):
                self.findings.append(Finding(base, number, mutations, stage, outcome))
                if self._keep is not None:
                    (self._keep / f"{base}-{self._seed}-{number}.gguf").write_bytes(path.read_bytes())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--cases", type=int, default=10**9)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="say why models are refused only when used")
    options = parser.parse_args()
    probing_in_forks()
    end = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {path.stem: path for path in options.models} or bases(folder)
        fuzzer = Fuzzer(options.seed, models, folder, options.keep)
        fuzzer.verbose = options.verbose
        number = options.first
        while number < options.first + options.cases and time.monotonic() < end:
            known = len(fuzzer.findings)
            fuzzer.case(number)
            number += 1
            if not options.json:
                for finding in fuzzer.findings[known:]:
                    print(finding.line(), flush=True)
    findings = [finding.line() for finding in fuzzer.findings]
    endings = dict(fuzzer.endings)
    if options.json:
        print(json.dumps({"cases": number - options.first, "endings": endings, "findings": findings}))
    else:
        print(number - options.first, "cases;", endings, "; findings:", len(findings))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
