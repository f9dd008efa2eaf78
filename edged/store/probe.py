"""Trying a model in a process of its own before it is accepted.

libllama checks much of a model by assertions that end the process; a broken or hostile file must end this
child and not the daemon. `python -m edged.store.probe` reads one request from its standard input and answers
with one line; what libllama says goes to standard error, whose end explains a death.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edged.errors import BY_CODE, BrokenModelError, EdgedError, UnsupportedModelError
from edged.store.catalogue import Catalogue
from edged.store.compose import compose
from edged.store.manifest import Manifest

_SECONDS = 900  # a whole model that cannot be cut is read once, from a slow disk perhaps
_MEMORY_SHARE = 0.8  # of what is available may be used to try a model that runs whole only


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
            [sys.executable, "-m", "edged.store.probe"],
            input=json.dumps(request).encode() + b"\n" + body,
            capture_output=True,
            timeout=_SECONDS,
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
    raise BrokenModelError(f"{name} was refused: llama.cpp {_death(child.returncode)} on it ({last[:200]})")


def _death(returncode: int) -> str:
    if returncode < 0:
        try:
            return f"ended with {signal.Signals(-returncode).name}"
        except ValueError:
            pass
    return f"ended with status {returncode}"


# ---- in the child

_LOG_ERROR = 4  # GGML_LOG_LEVEL_ERROR, which the Python package does not name


def _main() -> None:
    request = json.loads(sys.stdin.buffer.readline())
    try:
        if request["do"] == "file":
            answer: dict[str, object] = asdict(_read_file(Path(request["path"])))
        else:
            _run_windows(Manifest.unpack(sys.stdin.buffer.read()), Catalogue(Path(request["home"])))
            answer = {}
    except EdgedError as error:
        answer = {"code": error.code, "message": error.message}
    print(json.dumps(answer), flush=True)


def _run_windows(manifest: Manifest, catalogue: Catalogue) -> None:
    compose(manifest, catalogue, 0, manifest.n_layers)


def _read_file(path: Path) -> Trial:
    from llama_cpp import llama_cpp as llama  # noqa: PLC0415 - a second to import, and only the child needs it

    said: list[str] = []

    def keep(level: int, text: bytes, _data: object) -> None:
        if level == _LOG_ERROR:
            said.append(text.decode("utf-8", "replace").strip())

    listener = llama.llama_log_callback(keep)
    llama.llama_log_set(listener, None)
    llama.llama_backend_init()
    options = llama.llama_model_default_params()
    options.no_alloc = True
    options.load_mode = llama.LLAMA_LOAD_MODE_NONE
    model = llama.llama_model_load_from_file(str(path).encode(), options)
    if not model:
        fault = next((line for line in said if line), "without saying why")
        if "unknown model architecture" in fault:
            raise UnsupportedModelError(f"{path.name} was refused: {_plain(fault)}")
        raise BrokenModelError(f"{path.name} was refused by llama.cpp: {_plain(fault)}")
    if llama.llama_model_has_encoder(model) or not llama.llama_model_has_decoder(model):
        raise UnsupportedModelError(f"{path.name} is not a model that continues text")
    recurrent = llama.llama_model_is_recurrent(model) or llama.llama_model_is_hybrid(model)
    return Trial(
        n_vocab=int(llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))), recurrent=bool(recurrent)
    )


def _plain(fault: str) -> str:
    """A log line without the functions' names before it."""
    for prefix in ("llama_model_load: ", "error loading model: ", "error loading model architecture: "):
        fault = fault.removeprefix(prefix)
    return fault.removesuffix("\n")


if __name__ == "__main__":
    _main()
