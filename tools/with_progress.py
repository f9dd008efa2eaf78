"""Run a long and noisy command quietly: one line of progress, everything else in a log.

    python tools/with_progress.py LABEL LOG COMMAND...

Knows ninja's `[12/193]`. If the command fails, the end of its log is shown and its exit code is passed on.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

NINJA_STEP = re.compile(r"\[(\d+)/(\d+)\]")
LINE_EVERY_S = 15  # where there is no terminal to rewrite a line on
TAIL = 40  # lines of the log that are shown after a failure
GRACE_S = 10.0  # for a command that is interrupted
QUIET_S = 2  # a command that is done this soon is not worth a word


def run(label: str, log: Path, command: list[str]) -> int:
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    # A process group of its own, so that compilers end with it; SIGTERM ends it just as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
    )
    assert process.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_read, args=(process.stdout, log, lines), name="log-reader")
    reader.start()
    try:
        _show(label, lines, began)
        code = process.wait()
    except KeyboardInterrupt:
        _end(process)
        code = 130
    reader.join()
    if code == 0 and time.monotonic() - began > QUIET_S:
        _line(f"{label}: done in {_clock(began)}", last=True)
    elif code not in (0, 130):
        _line(f"{label}: failed after {_clock(began)}. The end of {log}:", last=True)
        with log.open(errors="replace") as text:
            sys.stderr.writelines(text.readlines()[-TAIL:])
    return code


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C for the whole group, since pip then removes its temporary files; what ignores that is ended."""
    for number, patience in ((signal.SIGINT, GRACE_S), (signal.SIGTERM, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def _read(output: IO[bytes], log: Path, lines: queue.Queue[str | None]) -> None:
    with log.open("wb") as file:
        for line in output:
            file.write(line)
            file.flush()  # for whoever watches the log
            lines.put(line.decode(errors="replace"))
    lines.put(None)


def _show(label: str, lines: queue.Queue[str | None], began: float) -> None:
    on_terminal = sys.stderr.isatty()
    percent = ""
    shown = began
    while True:
        try:
            line = lines.get(timeout=1)
        except queue.Empty:
            line = ""
        if line is None:
            return
        if (step := NINJA_STEP.search(line)) and int(step[2]):
            percent = f" {100 * int(step[1]) // int(step[2]):3d} %"
        now = time.monotonic()
        if now - shown >= (1 if on_terminal else LINE_EVERY_S):
            shown = now
            _line(f"{label}:{percent} after {_clock(began)}", last=not on_terminal)


def _line(text: str, last: bool) -> None:
    start, end = ("\r\x1b[K", "\n" if last else "") if sys.stderr.isatty() else ("", "\n")
    print(f"{start}{text}", end=end, file=sys.stderr, flush=True)


def _clock(began: float) -> str:
    minutes, seconds = divmod(int(time.monotonic() - began), 60)
    return f"{minutes}:{seconds:02d}"


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    sys.exit(run(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
