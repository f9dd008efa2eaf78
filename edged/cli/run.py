"""`edged run`: one answer on stdout, and nothing else there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edged.cli.options import current_settings, home_option

if TYPE_CHECKING:
    from edged.frontdoor.client import FrontDoorClient

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def sampling_options(command: Decorated) -> Decorated:
    options = (
        click.option(
            "--max-tokens", type=click.IntRange(min=1), metavar="N", help="The longest answer, in tokens."
        ),
        click.option(
            "--temperature",
            type=click.FloatRange(0.0, 100.0),
            metavar="T",
            help="0 always takes the likeliest token; higher is more varied (0.8).",
        ),
        click.option(
            "--seed", type=click.IntRange(0, 2**32 - 1), metavar="S", help="Makes a varied answer repeatable."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command("run", short_help="Answer one prompt on stdout.")
@click.argument("words", nargs=-1, metavar="[MODEL] PROMPT")
@sampling_options
@home_option
def command(
    words: tuple[str, ...], max_tokens: int | None, temperature: float | None, seed: int | None
) -> None:
    """Answer PROMPT with the loaded model, or with MODEL. PROMPT `-`, or none, is read from standard input.

    The answer, with one newline after it, is all that goes to stdout.
    """
    model, prompt = _model_and_prompt(words)
    from edged.frontdoor.client import open_front_door

    with open_front_door(current_settings().socket_path) as client:
        question(client, model, prompt, max_tokens, temperature, seed)


def question(
    client: FrontDoorClient,
    model: str | None,
    prompt: str,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
) -> None:
    """Ask once and stream the answer to stdout. Raises KeyboardInterrupt where Ctrl-C stopped the answer."""
    from edged.cli.answer import stream
    from edged.cli.ready_model import ready_model
    from edged.cli.terminal import Cleaner
    from edged.serving.generation import GenerateRequest, Message, Sampling

    chosen = {"temperature": temperature, "seed": seed}
    sampling = Sampling.model_validate({name: value for name, value in chosen.items() if value is not None})
    cleaner = Cleaner()
    raw = not sys.stdout.isatty()  # a file gets every byte, a terminal nothing that could steer it

    def write(piece: str) -> None:
        sys.stdout.write(piece if raw else cleaner.feed(piece))
        sys.stdout.flush()

    request = GenerateRequest(
        model=ready_model(client, model),
        messages=(Message(role="user", content=prompt),),
        sampling=sampling,
        max_tokens=max_tokens,
    )
    answer = stream(client, request, write)
    sys.stdout.write(cleaner.finish() + "\n")
    sys.stdout.flush()
    if answer.finish_reason == "cancelled":
        raise KeyboardInterrupt


def _model_and_prompt(words: tuple[str, ...]) -> tuple[str | None, str]:
    if len(words) > 2:
        raise click.UsageError('give the prompt as one word in quotes: edged run "Why is the sky blue?"')
    if not words and sys.stdin.isatty():
        raise click.UsageError("give a PROMPT, or pipe one in")
    prompt = words[-1] if words else "-"
    if prompt == "-":
        prompt = sys.stdin.buffer.read().decode("utf-8", errors="replace").strip("\n")
    if not prompt.strip():
        raise click.UsageError("the prompt is empty")
    return (words[0] if len(words) == 2 else None), prompt
