"""Trying a model in a process of its own before it is accepted.

libllama checks much of a model by assertions that end the process; a broken or hostile file must end this
child and not the daemon. `edged.store.probe_child` reads one request from its standard input and answers with
one line; what libllama says goes to standard error, whose end explains a death.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edged.errors import BY_CODE, BrokenModelError, EdgedError
from edged.store.catalogue import Catalogue
from edged.store.manifest import Manifest

_SECONDS = 900  # a whole model that cannot be cut is read once, from a slow disk perhaps


@dataclass(frozen=True, slots=True)
class Trial:
    """What libllama says about a model whose header it has accepted."""

    n_vocab: int
    recurrent: bool


def try_file(path: Path) -> Trial:
    """Have libllama read the metadata, the vocabulary and every tensor's shape, but no weights.

    Raises UnsupportedModelError for an architecture libllama does not know, else BrokenModelError.
    """
    answer = _in_child({"do": "file", "path": str(path.resolve())}, b"", path.name)
    return Trial(n_vocab=int(answer["n_vocab"]), recurrent=bool(answer["recurrent"]))


def try_windows(manifest: Manifest, catalogue: Catalogue) -> None:
    """Run one token through the model's first and last layer (through all of it, where it cannot be cut).

    Raises BrokenModelError. A model that runs whole only and does not fit into memory now is not run.
    """
    _in_child({"do": "windows", "home": str(catalogue.home.resolve())}, manifest.pack(), manifest.name)


def _in_child(request: dict[str, str], body: bytes, name: str) -> dict[str, Any]:
    try:
        child = subprocess.run(
            [sys.executable, "-m", "edged.store.probe_child"],
            input=json.dumps(request).encode() + b"\n" + body,
            capture_output=True,
            timeout=_SECONDS,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},  # a debugger started by a dying child helps nobody
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BrokenModelError(
            f"{name} was refused: trying it took more than {_SECONDS // 60} minutes"
        ) from None
    lines = child.stdout.decode("utf-8", "replace").splitlines()
    if child.returncode == 0 and lines:
        answer = json.loads(lines[-1])
        if "code" not in answer:
            return dict(answer)
        raise BY_CODE.get(answer["code"], EdgedError)(answer["message"])
    said = child.stderr.decode("utf-8", "replace").strip().splitlines()
    last = next((line.strip() for line in reversed(said) if line.strip()), "nothing was said")
    raise BrokenModelError(
        f"{name} was refused: llama.cpp {_death(child.returncode)} on it ({_without_folders(last)[:200]})"
    )


def _without_folders(line: str) -> str:
    """An assertion names the file where llama.cpp was built; its folders tell a user nothing."""
    return re.sub(r"(?<!\S)\S*/(?=[^/\s:]+\.(?:c|cpp|cc|h|hpp|m|mm|cu):\d+)", "", line)


def _death(returncode: int) -> str:
    if returncode < 0:
        try:
            return f"ended with {signal.Signals(-returncode).name}"
        except ValueError:
            pass
    return f"ended with status {returncode}"
