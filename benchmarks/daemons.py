"""Real daemons on this machine for benchmarks: own homes and ports, joined by token, asked locally."""

from __future__ import annotations

import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from benchmarks.cluster import MODEL, RunningCluster
from tests.lab import Place

LOAD_S = 300.0
COMPUTE = "edged_hop_compute_seconds_total"


@dataclass(frozen=True, slots=True)
class Timing:
    """One answer as its client saw it."""

    first_token_s: float
    tokens: int
    decode_s: float  # from the first token to the last

    @property
    def per_token_s(self) -> float:
        return self.decode_s / (self.tokens - 1)


class Daemons(RunningCluster):
    """One cluster of daemons, named and placed by `cores` (one entry per daemon, () for any core)."""

    def __init__(self, model: Path, cores: Sequence[Sequence[int]], threads: int, *flags: str) -> None:
        super().__init__()
        self._root = Path(tempfile.mkdtemp(prefix="edged-bench-"))
        self._stack.callback(shutil.rmtree, self._root, ignore_errors=True)
        try:
            self._start(cores, ("--http", "127.0.0.1:0", "--threads", str(threads), *flags))
            self.open_door()
            self.daemons[0].place.edged("import", str(model), "--name", MODEL, timeout=LOAD_S)
            self.load(lambda plan: len(plan.devices) == len(cores), LOAD_S)
            self._http = [daemon.status().http for daemon in self.daemons]
        except BaseException:
            print(self._last_words(), file=sys.stderr)
            self.close()
            raise

    def _start(self, cores: Sequence[Sequence[int]], flags: Sequence[str]) -> None:
        founder: list[str] = []
        for number, own in enumerate(cores):
            place = Place(f"d{number}", self._root / f"d{number}", own)
            self._stack.callback(place.close)
            port = free_port()
            joining = ["--join", self.daemons[0].token(), "--peer", founder[0]] if founder else []
            daemon = place.start_daemon("--port", str(port), *joining, *flags)
            self.daemons.append(daemon)
            daemon.wait_until(lambda status, n=number: len(status.members) > n, "cluster")  # type: ignore[misc]
            founder = founder or [f"127.0.0.1:{port}"]

    def _last_words(self) -> str:
        """The end of every daemon's log: their homes are removed with them."""
        logs = sorted(path for path in self._root.rglob("*.log") if path.is_file())
        tails = ["\n".join(log.read_text(errors="replace").splitlines()[-20:]) for log in logs]
        return "\n".join(
            f"--- {log.relative_to(self._root)}\n{tail}" for log, tail in zip(logs, tails, strict=True)
        )

    @property
    def home(self) -> Path:
        """EDGED_HOME of the head, whose store holds the whole model."""
        return self.daemons[0].place.home

    def compute_s(self) -> float:
        """Seconds that all windows of the ring have computed, as the daemons' own metrics count them."""
        total = 0.0
        for address in self._http:
            page = httpx.get(f"http://{address}/metrics", trust_env=False).text
            lines = [line for line in page.splitlines() if line.startswith(COMPUTE)]
            total += sum(float(line.rsplit(" ", 1)[1]) for line in lines)
        return total

    def answer(self, prompt: Sequence[int], max_tokens: int) -> Timing:
        """Times one greedy answer of exactly `max_tokens` tokens."""
        tokens, first, last = 0, 0.0, 0.0
        began = time.perf_counter()
        for came in self.tokens(prompt, max_tokens):
            last = time.perf_counter()
            first = first or last
            tokens += len(came)
        return Timing(first - began, tokens, last - first)


def free_port() -> int:
    """A port that is free, as is the next one (for joining)."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("", 0))
            port = int(first.getsockname()[1])
            try:
                second.bind(("", port + 1))
            except (OSError, OverflowError):
                continue
            return port


class Prompts:
    """Token ids that never repeat, so that no cache knows a prompt's beginning."""

    def __init__(self, n_vocab: int, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._n_vocab = n_vocab

    def take(self, length: int) -> list[int]:
        """`length` ordinary tokens (the first 259 of the random models are special or bytes)."""
        return [int(token) for token in self._rng.integers(300, self._n_vocab, length)]
