"""Where the conversation's lines come from: an edited prompt at a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path


class Interrupted(Exception):  # noqa: N818 - not an error: the user pressed Ctrl-C at the prompt
    pass


def line_input(history: Path, interactive: bool) -> Callable[[], str | None]:
    """A function that returns the next line, or None at the end of input; it may raise Interrupted."""
    return _edited_lines(history) if interactive else _plain_lines


def _plain_lines() -> str | None:
    line = sys.stdin.buffer.readline()
    return line.decode("utf-8", errors="replace").rstrip("\r\n") if line else None


def _edited_lines(history: Path) -> Callable[[], str | None]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    history.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    history.touch(mode=0o600)  # what people ask is nobody else's business
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(
        history=FileHistory(str(history)), key_bindings=keys, prompt_continuation="  "
    )

    def read() -> str | None:
        try:
            return session.prompt("> ")
        except KeyboardInterrupt:
            raise Interrupted from None
        except EOFError:
            return None

    return read
