"""`edged plan`: who would run which layers, what to expect of it, and what would help."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from edged.cli.json_text import json_text
from edged.cli.options import current_settings, home_option, setting_option

if TYPE_CHECKING:
    from edged.planning.cost import RingCost
    from edged.planning.model_profile import ModelProfile
    from edged.planning.plan import ContextOptions, Objective
    from edged.planning.profile import ClusterProfile
    from edged.planning.solve import SolverName, Wishes
    from edged.rpc.messages import StatusAnswer
    from edged.settings import Settings

DEFAULT_CTX = 4096  # positions, where the user does not say
SOLVERS = ("overlap", "halda", "even", "memory", "compute", "single")


@click.command("plan", short_help="Say who would run which layers, and how fast.")
@click.option("--cluster", metavar="FILE|NAME", help="Devices and links (default: the running cluster).")
@click.option("--model", "model_name", metavar="FILE|NAME", help="A model of the store, or a profile.")
@click.option("--solver", type=click.Choice(SOLVERS), default="overlap", show_default=True)
@click.option(
    "--objective",
    type=click.Choice(("latency", "throughput")),
    help="One stream as fast as can be, or many together (latency, or what the running cluster is for).",
)
@click.option("--head", metavar="DEVICE", help="Which device is the head; `any` chooses the best.")
@click.option("--prompt", type=click.IntRange(1, 10**6), metavar="N", help="Tokens of the prompt (128).")
@click.option(
    "--depth", type=click.IntRange(0, 10**7), metavar="N", help="Tokens before those counted (256)."
)
@setting_option("ctx")
@setting_option("parallel")
@setting_option("kv_type")
@setting_option("wire_type")
@setting_option("rounds")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object, for programs.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.svg",
    help="Draw the ring as a time line.",
)
@home_option
def command(
    cluster: str | None,
    model_name: str | None,
    solver: str,
    objective: str | None,
    head: str | None,
    prompt: int | None,
    depth: int | None,
    as_json: bool,
    plot: Path | None,
    **flags: Any,
) -> None:
    """Plan a model on a cluster, on the running one or on one described in a file.

    Nothing is changed by it. Clusters, devices and models that come with edged go by their names, such as
    --cluster mixed-home --model qwen3-30b-a3b.
    """
    from edged.cli.plan_text import as_document, print_plan
    from edged.planning.runnable import solve_runnable
    from edged.planning.solve import plan_of
    from edged.planning.upgrades import upgrades

    settings = current_settings(**flags)
    devices, status = _cluster(settings, cluster)
    model = _model(settings, model_name or (status.model if status is not None else ""))
    now = status.plan if status is not None else None
    objective = objective or (now.objective if now is not None else "latency")
    if head not in (None, "any"):
        devices = devices.with_head(_head(devices, str(head)))
    running = now.context if now is not None and now.model == model.model else None
    settings = _as_running(settings, flags, running)
    if status is not None and flags["rounds"] is None and solver == "overlap":
        settings = replace(settings, rounds=status.rounds)  # others have rounds of their own
    if solver == "single" and settings.rounds == 1:
        settings = replace(settings, rounds=None)  # a device alone is visited once
    wishes = _wishes(settings, model, solver, objective, prompt, depth)
    wishes = replace(wishes, any_head=head == "any", keeps_head=head not in (None, "any"))
    with _at_work("looking for the best ring"):
        ring = solve_runnable(devices, model, wishes)
        plan = plan_of(ring, wishes)
        plan = plan.model_copy(update={"note": "; ".join(_notes(ring, settings, wishes))})
    with _at_work("looking for what would help"):
        help_most = upgrades(ring, devices, model, wishes)
    if plot is not None:
        _draw(plot, ring)
    if as_json:
        click.echo(json_text(as_document(plan, devices, help_most)))
    else:
        runs = status is not None and now is not None and now.model == model.model
        print_plan(sys.stdout, plan, devices, model, help_most, status if runs else None)


@contextmanager
def _at_work(stage: str) -> Iterator[None]:
    """Shown at a terminal: many devices, or many things to buy, take some seconds."""
    from edged.cli.progress import progress_view
    from edged.rpc.messages import Progress

    if not sys.stderr.isatty():
        yield
        return
    with progress_view() as view:
        view.show(Progress(stage=stage))
        yield


def _cluster(settings: Settings, wanted: str | None) -> tuple[ClusterProfile, StatusAnswer | None]:
    """Devices and links, and what the head says of them where they are the running cluster's."""
    from edged.errors import SettingsError
    from edged.planning.profile_files import find, names, read_cluster

    if wanted is None:
        return _running_cluster(settings)
    path = find("clusters", wanted)
    if path is None:
        raise SettingsError(
            f"there is no cluster {wanted}; name a .toml file or: {', '.join(names('clusters'))}"
        )
    return read_cluster(path), None


def _running_cluster(settings: Settings) -> tuple[ClusterProfile, StatusAnswer]:
    """The devices as the head knows them."""
    from edged.errors import NotRunningError, SettingsError
    from edged.frontdoor.client import open_front_door
    from edged.planning.profile import ClusterProfile
    from edged.planning.profile_files import names

    others = f"or name a cluster with --cluster: a .toml file or {', '.join(names('clusters'))}"
    try:
        with open_front_door(settings.socket_path) as client:
            status = client.status()
    except NotRunningError as error:
        raise SettingsError(f"{error.message}; {others}") from None
    if not status.profiles:
        heads = [one.name for one in status.members if one.device == status.coordinator]
        head = f"the head, {heads[0]}," if heads else "the head"
        raise SettingsError(f"only {head} knows what every device can do: plan there, {others}")
    known = {profile.device for profile in status.profiles}
    links = tuple(link for link in status.links if {link.source, link.target} <= known)
    cluster = ClusterProfile(
        name=status.cluster[:16], head=status.device, devices=status.profiles, links=links
    )
    return cluster, status


def _model(settings: Settings, wanted: str) -> ModelProfile:
    """A profile by file or name; else a model of this device's store."""
    from edged.errors import SettingsError, UnknownModelError
    from edged.planning.profile_files import find, names, read_model

    wanted = wanted or settings.model or ""
    if not wanted:
        raise SettingsError(
            "name a model with --model: one of `edged models`, a .toml file or a known profile"
        )
    path = find("models", wanted)
    if path is not None:
        return read_model(path)
    from edged.store.catalogue import Catalogue
    from edged.store.model_profile import model_profile

    try:
        return model_profile(Catalogue(settings.home).find(wanted))
    except UnknownModelError as error:
        known = ", ".join(names("models"))
        raise UnknownModelError(f"{error.message}; profiles that come with edged: {known}") from None


def _head(cluster: ClusterProfile, wanted: str) -> str:
    from edged.errors import SettingsError

    for device in cluster.devices:
        if wanted in (device.device, device.name):
            return device.device
    known = ", ".join(device.name for device in cluster.devices)
    raise SettingsError(f"the cluster has no device {wanted}; it has {known}")


def _as_running(settings: Settings, flags: Mapping[str, Any], running: ContextOptions | None) -> Settings:
    """With the running ring's context, where the command line says nothing else."""
    if running is None:
        return settings
    known: dict[str, Any] = {
        "ctx": running.n_ctx,
        "parallel": running.n_seq_max,
        "kv_type": running.kv_type,
        "wire_type": running.wire_type,
    }
    return replace(settings, **{key: one for key, one in known.items() if flags.get(key) is None})


def _wishes(
    settings: Settings,
    model: ModelProfile,
    solver: str,
    objective: str,
    prompt: int | None,
    depth: int | None,
) -> Wishes:
    from edged.errors import SettingsError
    from edged.planning.context import CHUNK_ALONE, most_positions
    from edged.planning.device_costs import Workload
    from edged.planning.plan import ContextOptions
    from edged.planning.solve import Wishes

    n_ctx = min(settings.ctx or DEFAULT_CTX, most_positions(model.n_ctx_train))
    typical = Workload()
    workload = Workload(
        prompt=min(typical.prompt, n_ctx) if prompt is None else prompt,
        depth=min(typical.depth, n_ctx) if depth is None else depth,
    )
    for name, tokens in (("--prompt", workload.prompt), ("--depth", workload.depth)):
        if tokens > n_ctx:
            raise SettingsError(f"{name} {tokens} is more than the context of {n_ctx} tokens (--ctx)")
    context = ContextOptions(
        n_ctx=n_ctx,
        n_seq_max=settings.parallel,
        n_ubatch=CHUNK_ALONE,
        kv_type=settings.kv_type,
        wire_type=settings.wire_type,
        flash_attention=settings.flash_attention,
    )
    return Wishes(
        context=context,
        solver=cast("SolverName", solver),
        objective=cast("Objective", objective),
        workload=workload,
        rounds=settings.rounds,
    )


def _notes(ring: RingCost, settings: Settings, wishes: Wishes) -> Iterator[str]:
    """Where this is less than the user wished, and where a running cluster would do otherwise."""
    from edged.planning.context import SHORTEST, shortened

    context = ring.problem.context
    if settings.ctx is not None and context.n_ctx < settings.ctx:
        yield shortened(settings.ctx, context.n_ctx)
    if wishes.rounds is not None and max(1, ring.rounds) != wishes.rounds:
        yield f"one device runs the whole model, so that --rounds {wishes.rounds} changes nothing"
    shortest = context.n_seq_max == 1 and context.n_ctx < 2 * SHORTEST
    if any(hop.streamed for hop in ring.hops) and not shortest:
        yield (
            f"layers are read from disk beside a context of {context.n_seq_max} x {context.n_ctx} tokens: a "
            "running cluster would first try a shorter one; see --parallel and --ctx"
        )


def _draw(path: Path, ring: RingCost) -> None:
    from edged.cli.plan_plot import time_line
    from edged.errors import SettingsError

    if path.suffix.lower() != ".svg":
        raise SettingsError(f"--plot draws SVG: name a file that ends in .svg, not {path.name}")
    try:
        path.write_text(time_line(ring), encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror or error}") from None
