"""A program at a terminal of its own, and what a person would see there."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from types import TracebackType
from typing import Self

import pyte

ROWS, COLUMNS = 40, 100
PATIENCE_S = 30.0  # to give up, not to measure


class PtyScreen:
    def __init__(self, command: list[str], environ: dict[str, str]) -> None:
        self._screen = pyte.Screen(COLUMNS, ROWS)
        self._screen.write_process_input = self.send  # answers "where is the cursor?", as terminals do
        self._stream = pyte.ByteStream(self._screen)
        self.raw = b""
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execvpe(command[0], command, {**environ, "TERM": "xterm"})
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self._code: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._fd)

    def send(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    def wait_for(self, text: str, count: int = 1) -> None:
        """Until `text` is on the screen `count` times."""
        deadline = time.monotonic() + PATIENCE_S
        while self.text.count(text) < count:
            assert self._read(deadline), f"waited in vain for {text!r}; the screen:\n{self.text}"

    def wait_for_prompt(self) -> None:
        """Until the last line is an empty prompt."""
        deadline = time.monotonic() + PATIENCE_S
        while self.text.splitlines()[-1:] != [">"]:
            assert self._read(deadline), f"no prompt; the screen:\n{self.text}"

    def wait_end(self) -> int:
        """The program's exit code."""
        deadline = time.monotonic() + PATIENCE_S
        while self._read(deadline):
            pass
        assert time.monotonic() < deadline, f"it does not end; the screen:\n{self.text}"
        _, status = os.waitpid(self.pid, 0)
        self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def _read(self, deadline: float) -> bool:
        """Take in more output; False at its end, and when the deadline passes."""
        ready, _, _ = select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        try:
            output = os.read(self._fd, 65536)
        except OSError:  # how Linux says that the other end is closed
            return False
        self.raw += output
        self._stream.feed(output)
        return bool(output)
