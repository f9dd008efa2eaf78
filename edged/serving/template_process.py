"""One template from an untrusted file, rendered in a process of its own.

No limit within a process holds against every template, so the last word is the kernel's: the child is ended
when it takes too long or too much memory, and the daemon's threads and memory are never a template's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import Any

from edged.errors import InvalidRequestError, ModelError
from edged.serving.template_child import SECONDS


class TemplateProcess:
    """Starts its child at the first request and again after it was ended; one request at a time. Thread safe.

    `close` ends the child, and with it a request in progress; a child also ends when this process does.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._turn = threading.Lock()  # of requests
        self._state = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._closed = False

    def render(self, variables: dict[str, Any], limit: int) -> str:
        """The text of at most `limit` characters. Raises InvalidRequestError with the template's own message
        where it refuses the conversation, or what is wrong with the template."""
        return self._ask({"variables": variables, "limit": limit})

    def check(self) -> None:
        """Compiles the template only. Raises InvalidRequestError for one that can never be rendered."""
        self._ask({"check": True})

    def close(self) -> None:
        """Idempotent."""
        with self._state:
            self._closed = True
            child = self._child
            if child is not None:
                child.kill()
        with self._turn:
            self._reap()

    def _ask(self, request: dict[str, Any]) -> str:
        line = json.dumps(request) + "\n"
        with self._turn:
            fresh = self._child is None
            child = self._start()
            answer = ""
            try:
                assert child.stdin is not None and child.stdout is not None
                if fresh:
                    child.stdin.write(json.dumps(self._source) + "\n")
                child.stdin.write(line)
                child.stdin.flush()
                answer = child.stdout.readline()
            except BrokenPipeError:
                pass
            except BaseException:
                self._reap()
                raise
            if not answer.endswith("\n"):
                self._reap()
                if self._closed:
                    raise _unloaded()
                raise InvalidRequestError(
                    "the model's chat template fails: it takes more than "
                    f"{SECONDS:g} seconds or too much memory; a raw `prompt` still works"
                )
        said = json.loads(answer)
        if "text" in said:
            return str(said["text"])
        if said.get("refused"):
            raise InvalidRequestError(f"the chat template refuses this conversation: {said['fault']}")
        raise InvalidRequestError(f"the model's chat template fails: {said['fault']}")

    def _start(self) -> subprocess.Popen[str]:
        with self._state:
            if self._closed:
                raise _unloaded()
            if self._child is not None:
                return self._child
            try:
                child = self._child = subprocess.Popen(
                    [sys.executable, "-m", "edged.serving.template_child"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    encoding="utf-8",
                )
            except OSError as error:
                raise ModelError(f"the chat template cannot be rendered: {error.strerror}") from None
            return child

    def _reap(self) -> None:
        with self._state:
            child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        try:
            child.communicate()
        except (OSError, ValueError):
            child.wait()


def _unloaded() -> ModelError:
    return ModelError("the model is being unloaded: try again when a model is loaded")
