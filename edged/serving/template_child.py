"""The child of `edged.serving.template_process`: it renders one template, and may be killed by it.

Input: one line of JSON with the template's source, then one line per request; output: one line per answer.
Nothing that a template does lasts longer than `SECONDS` or takes more memory than `MEMORY_BYTES`: the kernel
ends this process, whatever it is busy with. It ends by itself when its input does.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import jinja2
from jinja2.exceptions import SecurityError

from edged.serving.template_sandbox import MAX_SECONDS, BoundedEnvironment, GenerationTags, render_within

MAX_TEMPLATE_CHARS = 2**20  # the longest known has 20,000
SECONDS = MAX_SECONDS + 1.0  # compiling included; beyond the sandbox's own limit, which explains itself
MEMORY_BYTES = 768 * 2**20  # of address space
_LONGEST_FAULT = 300  # characters
_LONGEST_DATE = 200


def main() -> None:
    _limit()
    answers = sys.stdout
    template = _Template(json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            answer = template.answer(json.loads(line))
        except MemoryError:
            answer = {"fault": "it needs too much memory"}
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(answers, answer)


def _limit() -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the default ends the process
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the daemon's; it closes our input
    with contextlib.suppress(ValueError, OSError):  # not every system can limit this
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # where memory runs out, this process has to go and not the daemon
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _send(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


class _Template:
    def __init__(self, source: str) -> None:
        self._source = source
        self._compiled: jinja2.Template | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """`text`, or `fault` with `refused` where the template itself refuses the conversation."""
        try:
            if self._compiled is None:
                self._compiled = _compile(self._source)
            if request.get("check"):
                return {"text": ""}
            text = render_within(
                request["limit"],
                self._compiled,
                raise_exception=_refuse,
                strftime_now=_strftime_now,
                functions=None,
                function_call=None,
                tools=None,
                tool_choice=None,
                **request["variables"],
            )
        except MemoryError:
            raise
        except _RefusedByTemplateError as refusal:
            return {"fault": _one_line(str(refusal)), "refused": True}
        except Exception as error:  # noqa: BLE001 (a template can raise whatever an expression can)
            return {"fault": _one_line(_in_words(error))}
        return {"text": text}


def _compile(source: str) -> jinja2.Template:
    if len(source) > MAX_TEMPLATE_CHARS:
        raise SecurityError(f"it has {len(source)} characters, {MAX_TEMPLATE_CHARS} at most")
    environment = BoundedEnvironment(
        loader=jinja2.BaseLoader(),
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[GenerationTags, "jinja2.ext.loopcontrols"],
    )
    environment.add_filter("tojson", _tojson)
    return environment.from_string(source)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As chat templates expect it: unlike jinja's own, nothing is escaped for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(form: str) -> str:
    if len(form) > _LONGEST_DATE or any(char.isdigit() for char in form):
        raise SecurityError("it wants the date in a form that is not supported")
    return datetime.now().strftime(form)


class _RefusedByTemplateError(Exception):
    """What `raise_exception` in a template raises."""


def _refuse(message: object) -> None:
    raise _RefusedByTemplateError(str(message)[:_LONGEST_FAULT])


def _in_words(error: Exception) -> str:
    """A fault for people who know templates but not the language that this one runs in."""
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"line {error.lineno}: {error.message}"
    if isinstance(error, SecurityError):
        return str(error)
    return f"line {_line(error)}: {_meaning(error)}"


def _meaning(error: Exception) -> str:
    if isinstance(error, jinja2.TemplateNotFound):
        return "it includes another file, and a chat template has to be complete in itself"
    if isinstance(error, jinja2.TemplateError):
        return str(error)
    for kind, words in (
        (RecursionError, "it is nested too deeply"),
        (ZeroDivisionError, "it divides by zero"),
        (OverflowError, "it computes a number or a range that is too large"),
        (TypeError, "it combines values that do not go together"),
        (LookupError, "it asks for something that is not there"),
    ):
        if isinstance(error, kind):
            return words
    return "an expression cannot be computed"


def _line(error: BaseException) -> int:
    """Of the template; jinja gives its frames the template's own lines."""
    found, trace = 1, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in ("<template>", "<unknown>"):
            found = trace.tb_lineno
        trace = trace.tb_next
    return found


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_FAULT else line[: _LONGEST_FAULT - 1] + "…"


if __name__ == "__main__":
    main()
