"""The verifying side of the process that computes: jobs go out, answers come back, deaths become errors."""

from __future__ import annotations

import multiprocessing
import re
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import TracebackType
from typing import Self

from edged.errors import WindowError
from edged.verify.child import serve
from edged.verify.jobs import (
    Advanced,
    Answer,
    CutDone,
    Failed,
    Inspect,
    Inspected,
    Job,
    RunCut,
    RunWhole,
    WholeDone,
)

Show = Callable[[int, int], None]
_PATIENCE_S = 10.0  # for a child that was told to end


class Session:
    """One process after another that computes: a new one takes the place of one that died."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._child: SpawnProcess | None = None
        self._line: Connection | None = None

    def inspect(self, job: Inspect) -> Inspected:
        answer = self._ask(job, lambda _done, _total: None)
        assert isinstance(answer, Inspected)
        return answer

    def whole(self, job: RunWhole, show: Show) -> WholeDone:
        answer = self._ask(job, show)
        assert isinstance(answer, WholeDone)
        return answer

    def cut(self, job: RunCut, show: Show) -> CutDone:
        answer = self._ask(job, show)
        assert isinstance(answer, CutDone)
        return answer

    def _ask(self, job: Job, show: Show) -> Answer:
        """Raises the job's EdgedError, or WindowError if the process died of it."""
        line = self._line or self._start()
        try:
            line.send(job)
            while isinstance(answer := line.recv(), Advanced):
                show(answer.done, answer.total)
        except (EOFError, OSError):
            raise WindowError(self._buried()) from None
        if isinstance(answer, Failed):
            raise answer.error
        found: Answer = answer
        return found

    def _start(self) -> Connection:
        self._output.unlink(missing_ok=True)
        spawning = multiprocessing.get_context("spawn")  # a fork would carry libllama's threads' locks along
        self._line, theirs = spawning.Pipe()
        self._child = spawning.Process(
            target=serve, args=(theirs, self._output), name="edged-verify", daemon=True
        )
        self._child.start()
        theirs.close()
        return self._line

    def _buried(self) -> str:
        assert self._child is not None
        self._child.join(_PATIENCE_S)
        code = self._child.exitcode
        self.close()
        said = self._output.read_text("utf-8", "replace").splitlines() if self._output.exists() else []
        last = next((line.strip() for line in reversed(said) if line.strip()), "nothing was said")
        # An assertion names the file where llama.cpp was built; its folders tell a user nothing.
        last = re.sub(r"(?<!\S)\S*/(?=[^/\s:]+\.(?:c|cpp|cc|h|hpp|m|mm|cu):\d+)", "", last)
        return f"llama.cpp ended with {_signal_name(code)} ({last[:200]})"

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
        if self._child is not None:
            self._child.kill()
            self._child.join()
            self._child.close()
        self._line = self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _signal_name(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            pass
    return f"status {code}"
