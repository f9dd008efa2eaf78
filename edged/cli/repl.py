"""The conversation behind `edged chat`: lines in, streamed answers out, and the slash commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edged.cli.answer import Answer, stream
from edged.cli.line_input import Interrupted, line_input
from edged.cli.ready_model import ready_model
from edged.cli.ring_text import ring_text
from edged.cli.terminal import Cleaner, clean, say
from edged.errors import EdgedError
from edged.serving.generation import GenerateRequest, Message

if TYPE_CHECKING:
    from edged.frontdoor.client import FrontDoorClient

HELP = """\
/clear          forget the conversation
/stats          figures of the last answer, and the ring
/model [NAME]   the models, or change to another one
/help           this list
/exit           leave (or Ctrl-D)
Ctrl-C stops an answer. Alt-Enter begins a new line; a paste may have many."""


def converse(client: FrontDoorClient, home: Path, model: str | None) -> None:
    """Until /exit or the end of input. At a terminal an error is shown and the conversation goes on;
    elsewhere it is raised, so that a script notices."""
    loaded = ready_model(client, model)
    interactive = sys.stdin.isatty()
    if interactive:
        say(f"{loaded}. /help lists the commands, Ctrl-D leaves.")
    Conversation(client, home, loaded, interactive).run()


class Conversation:
    def __init__(self, client: FrontDoorClient, home: Path, model: str, interactive: bool) -> None:
        self._client = client
        self._model = model
        self._interactive = interactive
        self._read = line_input(home / "history", interactive)
        self._messages: list[Message] = []
        self._last: Answer | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: _print(HELP),
            "/clear": self._clear,
            "/stats": self._stats,
            "/model": self._change_model,
        }

    def run(self) -> None:
        while True:
            try:
                line = self._read()
            except Interrupted:
                continue  # Ctrl-C at the prompt only empties the line
            if line is None or line.strip() in ("/exit", "/quit"):
                return
            if not line.strip():
                continue
            try:
                self._take(line)
            except EdgedError as error:
                if not self._interactive:
                    raise
                say(f"edged: {error.message}")
            except KeyboardInterrupt:  # in an answer, or while a model loaded
                if not self._interactive:
                    raise
                say("stopped.")

    def _take(self, line: str) -> None:
        verb, _, rest = line.strip().partition(" ")
        if verb in self._commands:
            self._commands[verb](rest.strip())
        elif verb.startswith("/") and verb[1:].isalpha():
            say(f"there is no {verb}; /help lists the commands")
        else:
            self._ask(line)

    def _ask(self, question: str) -> None:
        asked = (*self._messages, Message(role="user", content=question))
        cleaner = Cleaner()

        def write(piece: str) -> None:
            sys.stdout.write(cleaner.feed(piece))
            sys.stdout.flush()

        try:
            answer = stream(self._client, GenerateRequest(model=self._model, messages=asked), write)
        finally:
            sys.stdout.write(cleaner.finish() + "\n")
            sys.stdout.flush()
        self._last = answer
        if answer.text:
            self._messages = [*asked, Message(role="assistant", content=answer.text)]
        if answer.finish_reason == "cancelled":
            raise KeyboardInterrupt

    def _clear(self, _rest: str) -> None:
        self._messages.clear()
        self._last = None
        say("forgotten.")

    def _stats(self, _rest: str) -> None:
        if self._last is None:
            _print("no answer yet")
        else:
            usage, pace, first = self._last.usage, self._last.ms_per_token, self._last.first_text_s
            if usage is None:
                _print(f"tokens       {self._last.n_tokens} answered, then stopped")
            else:
                _print(f"tokens       {usage.prompt_tokens} asked, {usage.completion_tokens} answered")
                _print(f"cached       {usage.cached_tokens} of the prompt's tokens")
            _print(f"first text   {'-' if first is None else f'{first * 1000:.0f} ms'}")
            _print(f"pace         {'-' if pace is None else f'{pace:.1f} ms/token'}")
        _print(f"ring         {ring_text(self._client.status())}")

    def _change_model(self, name: str) -> None:
        if name:
            self._model = ready_model(self._client, name)
            say(f"now {self._model}.")
            return
        for model in self._client.models():
            _print(f"{'*' if model.name == self._model else ' '} {model.name}")


def _print(text: str) -> None:
    print(clean(text), flush=True)
