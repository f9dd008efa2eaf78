"""What may reach a terminal: text without control characters, whoever wrote it."""

from __future__ import annotations

import re
import sys

_MAX_SEQUENCE = 256  # characters; what is longer was no escape sequence

# CSI ... letter; OSC, DCS, SOS, PM or APC up to BEL or ST; or ESC and one or two characters.
_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-OQ-WYZ\\`-~]"
)
_BEGUN = re.compile(
    r"(?:(?:\x1b\[|\x9b)[0-?]*[ -/]*"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c\n]*\x1b?|\x1b[ -/]*)\Z"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """`text` without escape sequences and control characters; newlines and tabs stay."""
    return _CONTROL.sub("", _SEQUENCE.sub("", text))


class Cleaner:
    """`clean` for text that arrives in pieces: a sequence may begin in one and end in the next."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        text = _SEQUENCE.sub("", self._held + text)
        begun = _BEGUN.search(text)
        self._held = ""
        if begun is not None and begun.end() - begun.start() < _MAX_SEQUENCE:
            self._held = begun.group()
            text = text[: begun.start()]
        return _CONTROL.sub("", text)

    def finish(self) -> str:
        """What was held back and turned out to be no sequence."""
        rest, self._held = self._held, ""
        return clean(rest)


def say(message: str) -> None:
    """One line for a person, on stderr."""
    print(clean(message), file=sys.stderr, flush=True)
