"""`edged verify`: does a model give the same logits in windows as it gives whole?"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from edged.cli.options import current_settings, home_option, setting_option
from edged.cli.signals import signals_unwind
from edged.cli.terminal import clean
from edged.errors import EdgedError

if TYPE_CHECKING:
    from edged.planning.plan import FlashAttention, KvType

EXACT, NOT_EXACT = 0, 1


class _Counts(click.ParamType[Any]):
    name = "N[,N]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            counts = tuple(int(word) for word in str(value).split(","))
        except ValueError:
            counts = ()
        if not counts or min(counts) < 1:
            self.fail(f"{value!r} will not do; expected numbers of windows, as in 2,3", param, ctx)
        return counts


@click.command("verify", short_help="Compare a model in windows with the whole of it.")
@click.argument("model")
@click.option(
    "--windows", type=_Counts(), help="Into how many windows to cut.  [default: 2, 3, as many as possible]"
)
@click.option("--tokens", type=int, default=48, show_default=True, help="Tokens to compute.")
@click.option("--json", "as_json", is_flag=True, help="As a JSON object, for programs.")
@setting_option("kv_type")
@setting_option("flash_attention")
@setting_option("threads")
@home_option
def command(
    model: str,
    windows: tuple[int, ...] | None,
    tokens: int,
    as_json: bool,
    kv_type: KvType | None,
    flash_attention: FlashAttention | None,
    threads: int | None,
) -> int:
    """Compute some tokens with MODEL, whole and in windows, and compare the logits bit for bit.

    MODEL is a GGUF file, or the name of a model in the store. No daemon is needed, and nothing is imported.

    Exit code 0: all that was compared is exact; with a model that runs whole only, that whole is compared.
    Exit code 1: something differs, or nothing could be compared.
    """
    from edged.cli.progress import progress_view
    from edged.rpc.messages import Progress
    from edged.verify.check import Wishes, architecture_of, verify

    settings = current_settings(threads=threads, kv_type=kv_type, flash_attention=flash_attention)
    wishes = Wishes(settings.threads, windows or (), tokens, settings.kv_type, settings.flash_attention)
    try:
        with signals_unwind(), progress_view() as view:
            report = verify(
                model,
                settings.home,
                wishes,
                lambda stage, done, total: view.show(Progress(stage=stage, done=done, total=total)),
            )
    except EdgedError as error:
        if as_json:
            kind = architecture_of(model, settings.home)
            failure = {
                "exact": False,
                "model": model,
                "architecture": kind,
                "cuts": [],
                "reason": error.message,
            }
            click.echo(json.dumps(failure, indent=2))
        raise
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    else:
        for line in report.lines():
            click.echo(clean(line))
    return EXACT if report.exact else NOT_EXACT
