"""Trying a model in a process of its own before it is accepted, and a window before it is loaded.

libllama checks much of a model by assertions that end the process; a broken or hostile file must end this
child and not the daemon. `edged.store.probe_child` reads one request from its standard input and answers with
one line; what libllama says goes to standard error, whose end explains a death.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgpack

from edged.backend.source import WindowSource
from edged.errors import BY_CODE, BrokenModelError, EdgedError, shown
from edged.planning.plan import ContextOptions
from edged.store.catalogue import Catalogue
from edged.store.manifest import Manifest

_MODEL_S = 900.0  # a whole model that cannot be cut is read once, from a slow disk perhaps
_REHEARSAL_S = 120.0  # reads a header and plans memory
_MOST_SAID = 300
_LOOK_S = 0.2  # how often a caller's wish to stop is looked for

_WHY = re.compile(r"GGML_(?:ASSERT|ABORT)|\.(?:c|cpp|cc|h|m|cu):\d+: |what\(\):|[Ee]rror\b")

Asked = dict[str, object]


@dataclass(frozen=True, slots=True)
class Trial:
    """What libllama says about a model whose header it has accepted."""

    n_vocab: int
    recurrent: bool


def try_file(path: Path) -> Trial:
    """Have libllama read the metadata, the vocabulary and every tensor's shape, but no weights.

    Raises UnsupportedModelError for an architecture libllama does not know, else BrokenModelError.
    """
    answer = _in_child({"do": "file", "path": str(path.resolve())}, b"", path.name, _MODEL_S)
    return Trial(n_vocab=int(answer["n_vocab"]), recurrent=bool(answer["recurrent"]))


def try_windows(manifest: Manifest, catalogue: Catalogue) -> None:
    """Run one token through every kind of layer (through all of a model that cannot be cut).

    Raises BrokenModelError. Layers that are not on this device or do not fit into memory now are not run.
    """
    request: Asked = {"do": "windows", "home": str(catalogue.home.resolve())}
    _in_child(request, manifest.pack(), manifest.name, _MODEL_S)


def why_not_in_windows(manifest: Manifest, catalogue: Catalogue) -> str:
    """Why windows of this model cannot be relied on; empty where they agree with the whole model, or where
    that is too large to be compared here. For architectures that the rules of cutting do not know.
    """
    request: Asked = {"do": "compare", "home": str(catalogue.home.resolve())}
    try:
        return str(_in_child(request, manifest.pack(), manifest.name, _MODEL_S)["why"])
    except BrokenModelError as error:
        return f"in windows it fails ({error.message})"


class Rehearsals:
    """Loading windows without their weights, in a child: what would end a daemon at load ends that."""

    def __init__(self) -> None:
        self._passed: set[bytes] = set()

    def rehearse(
        self,
        source: WindowSource,
        context: ContextOptions,
        n_threads: int,
        n_gpu_layers: int = 0,
        wanted: Callable[[], None] | None = None,
    ) -> None:
        """Raises BrokenModelError or WindowError where `source` cannot be loaded with `context`.

        What went well once is not tried again. `wanted` is called often; what it raises ends the child.
        """
        request: Asked = {
            "do": "rehearse",
            "context": context.model_dump(),
            "n_threads": n_threads,
            "n_gpu_layers": n_gpu_layers,
        }
        body = bytes(msgpack.packb(asdict(source), default=str))
        key = hashlib.sha256(json.dumps(request).encode() + body).digest()
        if key not in self._passed:
            what = f"a window of the layers {source.first} to {source.last - 1}"
            _in_child(request, body, what, _REHEARSAL_S, wanted)
            self._passed.add(key)


def run_child(
    request: Asked, body: bytes, seconds: float, wanted: Callable[[], None] | None = None
) -> tuple[int, bytes, bytes]:
    """Exit status (minus the signal that ended it), standard output and error. Raises TimeoutExpired."""
    with tempfile.TemporaryFile() as asked:  # no pipe: a child that is slow to read would hold up its parent
        asked.write(json.dumps(request).encode() + b"\n" + body)
        asked.seek(0)
        child = subprocess.Popen(
            [sys.executable, "-m", "edged.store.probe_child"],
            stdin=asked,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},  # a debugger started by a dying child helps nobody
        )
    end = time.monotonic() + seconds
    with child:
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    out, err = child.communicate(timeout=_LOOK_S)
                    return child.returncode, out, err
                if wanted is not None:
                    wanted()
                if time.monotonic() > end:
                    raise subprocess.TimeoutExpired("trying a model", seconds)
        except BaseException:
            child.kill()
            raise


def _in_child(
    request: Asked, body: bytes, name: str, seconds: float, wanted: Callable[[], None] | None = None
) -> dict[str, Any]:
    try:
        status, out, err = run_child(request, body, seconds, wanted)
    except subprocess.TimeoutExpired:
        minutes = f"{seconds / 60:.0f}"
        raise BrokenModelError(f"{name} was refused: trying it took more than {minutes} minutes") from None
    lines = out.decode("utf-8", "replace").splitlines()
    if status == 0 and lines:
        answer = json.loads(lines[-1])
        if "code" not in answer:
            return dict(answer)
        raise BY_CODE.get(answer["code"], EdgedError)(shown(answer["message"], _MOST_SAID))
    raise BrokenModelError(f"{name} was refused: llama.cpp {_death(status)} on it{_last_words(err)}")


def _last_words(err: bytes) -> str:
    """What the dying child said of its death, in brackets; nothing where it spoke of other things only."""
    said = (line.strip() for line in reversed(err.decode("utf-8", "replace").splitlines()))
    why = next((line for line in said if _WHY.search(line)), "")
    return f" ({shown(_without_folders(why), _MOST_SAID)})" if why else ""


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
