"""`edged import`: a GGUF file becomes a model of this device's store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edged.cli.options import current_settings, home_option
from edged.cli.terminal import say

if TYPE_CHECKING:
    from edged.store.catalogue import Catalogue
    from edged.store.manifest import Manifest


@click.command("import", short_help="Take a GGUF file into the store.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", metavar="NAME", help="What the model is called (default: what the file says).")
@click.option("--replace", is_flag=True, help="Replace another model of the same name.")
@home_option
def command(file: Path, name: str | None, replace: bool) -> None:
    """Take the model in the GGUF FILE into the store; of a split model, name the first file.

    It is cut by layers, checked, and tried before it is accepted. A running daemon knows it at once.
    """
    import_file(current_settings().home, file, name, replace)


def import_file(home: Path, file: Path, name: str | None = None, replace: bool = False) -> str:
    """Import `file` into the store of `home`, with progress; the model's name there."""
    from edged.cli.progress import progress_view
    from edged.rpc.messages import Progress
    from edged.store.catalogue import Catalogue
    from edged.store.importer import import_model

    with progress_view() as view:

        def report(done: int, total: int) -> None:
            view.show(Progress(stage=f"importing {file.name}", done=done, total=total, unit="bytes"))

        catalogue = Catalogue(home)
        imported = import_model(file, catalogue, name, replace, report)
    say(f"imported {imported.name}")
    warn_of_template(catalogue, imported)
    return imported.name


def warn_of_template(catalogue: Catalogue, manifest: Manifest) -> None:
    """A model whose chat template cannot be used is still good for raw prompts, so it is only said."""
    from edged.serving.template import template_fault
    from edged.store.gguf_file import read_gguf

    pair = read_gguf(catalogue.path(manifest.vocabulary.sha256)).pairs.get("tokenizer.chat_template")
    source = None if pair is None else pair.value()
    fault = template_fault(source) if isinstance(source, str) else None
    if fault is not None:
        say(f"warning: {manifest.name} cannot chat, but completes raw prompts: {fault}")
