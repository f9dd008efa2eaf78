"""Work in a forked child with limits on its memory and time: it may die, and the parent learns how."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from edged.errors import EdgedError

Ending = Literal["done", "refused", "escaped", "died", "hung"]


@dataclass
class Outcome:
    """How the work ended.

    refused: an EdgedError.  escaped: any other exception, `message` has its end.  died: by a signal.
    hung: was still at work after its time.
    """

    ending: Ending
    code: str = ""
    message: str = ""
    said: str = ""  # the end of what it wrote to standard error
    answer: dict[str, Any] = field(default_factory=dict)


def forked(work: Callable[[], dict[str, Any] | None], seconds: float, megabytes: int) -> Outcome:
    """`work` in a child of this process, which must have one thread only."""
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            os.close(reading)
            _in_child(work, megabytes, writing, said.fileno())
        os.close(writing)
        outcome = _await(child, reading, seconds)
        said.seek(0, 2)
        said.seek(max(0, said.tell() - 2000))
        outcome.said = said.read().decode("utf-8", "replace").strip()
        return outcome


def _in_child(work: Callable[[], dict[str, Any] | None], megabytes: int, writing: int, said: int) -> None:
    """Never returns."""
    os.dup2(said, 1)
    os.dup2(said, 2)
    limit = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (megabytes * 2**20, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["GGML_NO_BACKTRACE"] = "1"
    try:
        outcome = Outcome("done", answer=work() or {})
    except EdgedError as error:
        outcome = Outcome("refused", error.code, error.message)
    except BaseException:  # noqa: BLE001 - whatever it is, the parent is to hear of it
        outcome = Outcome("escaped", message=traceback.format_exc()[-1500:])
    os.write(writing, json.dumps(asdict(outcome)).encode())
    os._exit(0)


def _await(child: int, reading: int, seconds: float) -> Outcome:
    deadline, body, hung = time.monotonic() + seconds, b"", False
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reading], [], [], left)[0]:
            os.kill(child, signal.SIGKILL)
            hung = True
            break
        block = os.read(reading, 65536)
        if not block:
            break
        body += block
    os.close(reading)
    status = os.waitpid(child, 0)[1]
    if hung:
        return Outcome("hung", message=f"after {seconds} s")
    if os.WIFSIGNALED(status):
        return Outcome("died", message=signal.Signals(os.WTERMSIG(status)).name)
    return Outcome(**json.loads(body)) if body else Outcome("died", message=f"status {status}")
