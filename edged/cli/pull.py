"""`edged pull`: a model from Hugging Face comes into this device's store."""

from __future__ import annotations

import click

from edged.cli.import_model import warn_of_template
from edged.cli.options import current_settings, home_option
from edged.cli.terminal import say


@click.command("pull", short_help="Take a model from Hugging Face into the store.")
@click.argument("name")
@click.option("--replace", is_flag=True, help="Replace another model of the same name.")
@home_option
def command(name: str, replace: bool) -> None:
    """Download a GGUF model from Hugging Face and take it into the store.

    NAME is OWNER/REPO, or OWNER/REPO:CHOICE with a quantisation or a file's name; without CHOICE it is
    Q4_K_M. A download that broke off goes on where it was.
    """
    from edged.cli.progress import progress_view
    from edged.rpc.messages import Progress
    from edged.store.catalogue import Catalogue
    from edged.store.pull import pull_model

    catalogue = Catalogue(current_settings().home)
    with progress_view() as view:

        def report(stage: str, done: int, total: int) -> None:
            view.show(Progress(stage=stage, done=done, total=total, unit="bytes"))

        pulled = pull_model(name, catalogue, report, replace)
    say(f"pulled {pulled.name}")
    warn_of_template(catalogue, pulled)
