"""A child process whose output is captured line by line, so that tests wait for events and not for time."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from tests.lab.shell import LabError, LabTimeoutError

TAIL_LINES = 25


class CapturedProcess:
    """Standard output and error together, kept in memory and in `log`."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path, label: str) -> None:
        self.label = label
        self._lines: list[str] = []
        self._ended = False
        self._news = threading.Condition()
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C at the tests is not meant for it
        )
        self._reader = threading.Thread(target=self._read, args=(log,), name=f"log-{label}")
        self._reader.start()

    def _read(self, log: Path) -> None:
        assert self._process.stdout is not None
        with log.open("wb") as copy, self._process.stdout as stream:
            for raw in stream:
                copy.write(raw)
                copy.flush()
                with self._news:
                    self._lines.append(raw.decode(errors="replace").rstrip("\n"))
                    self._news.notify_all()
        self._process.wait()
        with self._news:
            self._ended = True
            self._news.notify_all()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def lines(self) -> list[str]:
        with self._news:
            return list(self._lines)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def tail(self) -> str:
        return "\n".join(f"  {self.label} | {line}" for line in self.lines[-TAIL_LINES:])

    def mark(self) -> int:
        """A place in the log to wait from: pass it as `after`."""
        with self._news:
            return len(self._lines)

    def wait_for_line(self, pattern: str, timeout: float = 60.0, after: int = 0) -> re.Match[str]:
        """The first line from `after` on that `pattern` (a regular expression) is found in."""
        deadline = time.monotonic() + timeout
        seen = after
        with self._news:
            while True:
                for line in self._lines[seen:]:
                    match = re.search(pattern, line)
                    if match is not None:
                        return match
                seen = len(self._lines)
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    break
                self._news.wait(left)
        how = f"ended with {self._process.returncode}" if self._ended else f"said nothing in {timeout:g} s"
        raise LabTimeoutError(f"waiting for {pattern!r}, {self.label} {how}\n{self.tail()}")

    def wait_for_news(self, after: int, timeout: float) -> int:
        """Returns when the log has grown beyond `after`, the process ended, or `timeout` passed."""
        with self._news:
            self._news.wait_for(lambda: len(self._lines) > after or self._ended, timeout)
            return len(self._lines)

    def interrupt(self) -> None:
        """Ctrl-C as a terminal sends it: to the whole process group."""
        os.killpg(self.pid, signal.SIGINT)

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9, and waits until it is dead."""
        self._process.kill()
        self.wait(10.0)

    def wait(self, timeout: float = 30.0) -> int:
        """The exit status. LabTimeoutError if it still runs."""
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise LabTimeoutError(f"{self.label} still runs after {timeout:g} s\n{self.tail()}") from None
        self._reader.join(5.0)
        return status

    def close(self) -> None:
        """Kills its whole group if need be and joins the reader."""
        if self.running:
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(5.0)
        if self._reader.is_alive():  # something outside the group still holds the pipe
            raise LabError(f"{self.label} left a process behind that writes to its output")
