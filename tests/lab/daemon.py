"""`edged start` as a process under test: its log, its status, its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from edged.errors import DocumentError
from edged.rpc.messages import StatusAnswer
from tests.lab.process import CapturedProcess
from tests.lab.shell import LabError, LabTimeoutError

if TYPE_CHECKING:
    from tests.lab.place import Place

POLL_S = 0.3  # at most this long between two looks at the status; a new log line ends the wait earlier


class Daemon:
    """A running daemon and the place it runs in."""

    def __init__(self, place: Place, process: CapturedProcess) -> None:
        self.place = place
        self.process = process

    @property
    def log(self) -> str:
        return self.process.text

    def status(self) -> StatusAnswer:
        """What `edged status --json` says; LabError while no daemon answers."""
        done = self.place.edged("status", "--json", check=False, timeout=30)
        if done.returncode != 0:
            raise LabError(f"{self.place.name}: no status: {done.stderr.strip()}")
        try:
            return StatusAnswer.model_validate_json(done.stdout)
        except (DocumentError, ValueError) as error:
            raise LabError(f"{self.place.name}: status is not a StatusAnswer: {error}") from None

    def wait_until(
        self, wanted: Callable[[StatusAnswer], bool], what: str, timeout: float = 60.0
    ) -> StatusAnswer:
        """The first status that `wanted` accepts; `what` names it in the error."""
        deadline = time.monotonic() + timeout
        last = "no status yet"
        seen = 0
        while True:
            try:
                status = self.status()
                if wanted(status):
                    return status
                last = status.model_dump_json()
            except LabError as error:
                last = str(error)
            if not self.process.running:
                raise LabError(f"{self.place.name} ended while waiting for {what}\n{self.process.tail()}")
            if time.monotonic() > deadline:
                raise LabTimeoutError(
                    f"{self.place.name}: no {what} in {timeout:g} s; last: {last}\n{self.process.tail()}"
                )
            seen = self.process.wait_for_news(seen, POLL_S)

    def wait_started(self, timeout: float = 60.0) -> StatusAnswer:
        """Answers its own command line."""
        return self.wait_until(lambda _: True, "answering daemon", timeout)

    def wait_serving(self, timeout: float = 120.0) -> StatusAnswer:
        """Has a model loaded and takes requests."""
        return self.wait_until(lambda status: status.state == "ready", "loaded model", timeout)

    def token(self) -> str:
        """A join token, fresh from `edged token`."""
        return self.place.edged("token").stdout.strip().splitlines()[-1].strip()

    def stop(self, timeout: float = 30.0) -> int:
        """SIGTERM and the exit status."""
        self.process.terminate()
        return self.process.wait(timeout)
