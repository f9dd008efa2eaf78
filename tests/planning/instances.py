"""Random small planning problems, and the best ring of each by trying everything."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise, permutations, product

from edged.planning.cost import Problem, RingCost, Share, ring_cost, share
from edged.planning.deal import Deal, closings, hops_of_windows, ring_windows
from edged.planning.device_costs import Workload
from edged.planning.model_profile import LayerProfile, ModelProfile, TensorGroup
from edged.planning.plan import ContextOptions, Hop, Objective
from edged.planning.profile import (
    ClusterProfile,
    DeviceProfile,
    LinkProfile,
    ProcessorProfile,
    TypeSpeed,
)

MIB = 2**20
CONTEXT = ContextOptions(n_ctx=512, n_seq_max=1, n_ubatch=16, flash_attention="off")


def random_problem(seed: int, *, uniform: bool) -> Problem:
    """Up to three devices and seven layers; memory, GPUs, disks and links matter about half of the time."""
    rng = random.Random(seed)
    n_layers, n_devices = rng.randint(2, 7), rng.randint(1, 3)
    devices = tuple(_device(rng, f"d{i}") for i in range(n_devices))
    links = []
    if rng.random() < 0.5:
        for a in range(n_devices):
            links += [_link(rng, f"d{a}", f"d{b}") for b in range(a)]
    one = _layer(rng)
    layers = tuple(one if uniform else _layer(rng) for _ in range(n_layers))
    tensors = rng.choice([0, 1, 4])  # in a layer, all of a size; 0: not known
    if tensors:
        layers = tuple(
            layer.model_copy(update={"largest_tensor": layer.nbytes // tensors}) for layer in layers
        )
    cuts = tuple(range(1, n_layers))
    if not uniform and rng.random() < 0.4:
        cuts = tuple(sorted(rng.sample(cuts, rng.randint(1, len(cuts)))))
    model = ModelProfile(
        model="m",
        n_layers=n_layers,
        n_embd=1024,
        n_vocab=1000,
        n_heads=8,
        boundaries=cuts,
        layer_bytes=tuple(layer.nbytes for layer in layers),
        layers=layers,
        embedding_bytes=0,
        output_bytes=rng.choice([rng.randint(1, 20), 80]) * MIB,
        kv_bytes_per_token_layer=max(layer.kv_bytes_per_token for layer in layers),
        n_ctx_train=4096,
        **{rng.choice(["can_stream_output", "streams_output", "recurrent"]): True},
    )
    cluster = ClusterProfile(head="d0", devices=devices, links=tuple(links))
    return Problem(cluster, model, CONTEXT, Workload(prompt=64, depth=128))


def _device(rng: random.Random, name: str) -> DeviceProfile:
    speed = rng.uniform(0.2, 3) * 1e9
    processors = [_processor("CPU", "cpu", speed, run_s=rng.choice([0, 0.001]))]
    if rng.random() < 0.4:
        gpu = _processor("GPU", "gpu", speed * rng.choice([0.5, 3, 10]), run_s=rng.choice([0, 0.001, 0.02]))
        changes = {"memory_budget": rng.randint(20, 300) * MIB, "shares_memory": rng.random() < 0.3}
        processors.append(gpu.model_copy(update=changes))
    return DeviceProfile(
        device=name,
        name=name,
        memory_budget=rng.randint(60, 350) * MIB,
        disk_free=rng.choice([2**40, 2**40, 200 * MIB]),
        threads=1,
        bandwidth=speed,
        flops=speed * 10,
        processors=tuple(processors),
        disk_sequential=rng.choice([0, rng.uniform(0.1, 3) * 1e9]),
        hop_overhead_s=rng.choice([0, 0.001]),
    )


def _processor(name: str, kind: str, speed: float, run_s: float) -> ProcessorProfile:
    return ProcessorProfile.model_validate(
        {
            "name": name,
            "kind": kind,
            "speeds": (TypeSpeed(type="", decode=speed, prefill=speed * 10),),
            "memory_bandwidth": 2 * speed,
            "run_s": run_s,
        }
    )


def _link(rng: random.Random, source: str, target: str) -> LinkProfile:
    return LinkProfile(
        source=source, target=target, latency=rng.uniform(0, 0.01), bandwidth=rng.uniform(1e6, 1e8)
    )


def _layer(rng: random.Random) -> LayerProfile:
    nbytes = rng.randint(10, 80) * MIB
    group = TensorGroup(type="", nbytes=nbytes, weights=2 * nbytes)
    return LayerProfile(groups=(group,), kv_bytes_per_token=rng.randint(0, 4096))


def brute_force(problem: Problem, objective: Objective) -> float | None:
    """The best goal of all rings there are.

    The head has the first place's worth of layers and the last; each other may be anybody's. Of each window
    any layers are on the GPU, any streamed, with any read-ahead.
    """
    places, head = problem.of.places, problem.head
    known: dict[tuple[str, tuple[tuple[int, int], ...]], list[tuple[Share, tuple[Hop, ...]]]] = {}
    goals = []
    for inner in product(problem.devices, repeat=max(0, len(places) - 3)):
        owners = (head, *inner, head)[: len(places) - 1]
        windows: list[tuple[str, int, int]] = []
        for owner, (first, last) in zip(owners, pairwise(places), strict=True):
            joined = bool(windows) and windows[-1][0] == owner
            windows.append((owner, windows.pop()[1] if joined else first, last))
        held = []
        for name in dict.fromkeys(owners):
            own = tuple((first, last) for owner, first, last in windows if owner == name)
            if (name, own) not in known:
                known[name, own] = _not_beaten(_any_holdings(problem, name, own))
            held.append(known[name, own])
        for picked in product(*held):
            hops = sorted((hop for _, hops in picked for hop in hops), key=lambda hop: hop.first)
            goals.append(ring_cost(problem, hops).goal(objective))
    return min(goals, default=None)


def _any_holdings(
    problem: Problem, name: str, windows: Sequence[tuple[int, int]]
) -> list[tuple[Share, tuple[Hop, ...]]]:
    costs = problem.devices[name]
    found = []
    for hops in product(*(_any_hops(problem, name, first, last) for first, last in windows)):
        cost = share(costs, problem.of, hops)
        if cost.fits:
            found.append((cost, hops))
    return found


def _any_hops(problem: Problem, name: str, first: int, last: int) -> list[Hop]:
    costs, model, n = problem.devices[name], problem.model, last - first
    output = (False, True) if last == model.n_layers and model.can_stream_output else (False,)
    return [
        Hop(
            device=name,
            first=first,
            last=last,
            gpu_layers=gpu,
            streamed=streamed,
            read_ahead=places,
            streams_output=streams and gpu == 0,
        )
        for gpu in (range(n + 1) if costs.gpu else (0,))
        for streamed in (range(n - gpu + 1) if costs.disk else (0,))
        for places in (range(1, streamed + 1) if streamed else (0,))
        for streams in output
    ]


def brute_force_of_rounds(problem: Problem, objective: Objective, rounds: Sequence[int]) -> float | None:
    """The best goal of rings of several devices in which layers are dealt out evenly over the rounds."""
    return min((cost.goal(objective) for cost in _rings(problem, rounds)), default=None)


def _rings(problem: Problem, rounds: Sequence[int]) -> Iterator[RingCost]:
    n, places, head = problem.model.n_layers, problem.of.places, problem.head
    if len(places) < 3:
        return
    closing = (places[-2], n)
    others = [name for name in problem.devices if name != head]
    for size in range(1, len(others) + 1):
        for order in permutations(others, size):
            names = (head, *order)
            for k in rounds:
                for counts in product(range(k, n + 1), repeat=len(names)):
                    if sum(counts) != closing[0]:
                        continue
                    windows, _ = ring_windows(names, counts, k, n - closing[0], n)
                    if all(first in places for _, first, _ in windows):
                        yield from _filled(problem, names, windows, closing)


def brute_force_of_cuts(problem: Problem, objective: Objective, rounds: Sequence[int]) -> float | None:
    """The best goal of all rings in which each device has one window a round, cut anywhere it may be."""
    n, places, head = problem.model.n_layers, problem.of.places, problem.head
    others = [name for name in problem.devices if name != head]
    closing = (places[-2], n)
    goals = []
    for size in range(1, len(others) + 1):
        for order, k in product(permutations(others, size), rounds):
            names = (head, *order)
            for inner in combinations(places[1:-2], len(names) * k - 1):
                ends = (0, *inner, closing[0])
                windows = list(zip(names * k, ends[:-1], ends[1:], strict=True))
                goals += [cost.goal(objective) for cost in _filled(problem, names, windows, closing)]
    return min(goals, default=None)


def _filled(
    problem: Problem,
    names: Sequence[str],
    windows: Sequence[tuple[str, int, int]],
    closing: tuple[int, int],
) -> Iterator[RingCost]:
    holdings = []
    for name in names:
        own = tuple((first, last) for owner, first, last in windows if owner == name)
        held = _holdings(problem, name, own, closing if name == problem.head else None)
        holdings.append(_not_beaten(held))
    for picked in product(*holdings):
        own_hops = {name: iter(hops) for name, (_, hops) in zip(names, picked, strict=True)}
        order = [*(owner for owner, _, _ in windows), problem.head]
        yield ring_cost(problem, [next(own_hops[owner]) for owner in order])


def _holdings(
    problem: Problem, name: str, windows: Sequence[tuple[int, int]], closing: tuple[int, int] | None
) -> list[tuple[Share, tuple[Hop, ...]]]:
    costs = problem.devices[name]
    n = sum(last - first for first, last in windows)
    found = []
    tails = [(how.hop(name, *closing),) for how in closings(costs, problem.of)] if closing else [()]
    for tail in tails:
        for gpu in range(n + 1) if costs.gpu else (0,):
            for streamed in range(n - gpu + 1) if costs.disk else (0,):
                for places in range(1, streamed + 1) if streamed else (0,):
                    hops = (*hops_of_windows(name, windows, Deal(n, gpu, streamed, places)), *tail)
                    cost = share(costs, problem.of, hops)
                    if cost.fits:
                        found.append((cost, hops))
    return found


def _not_beaten(held: list[tuple[Share, tuple[Hop, ...]]]) -> list[tuple[Share, tuple[Hop, ...]]]:
    """Only what is least in busy or disk time: both goals grow with either."""
    kept: list[tuple[Share, tuple[Hop, ...]]] = []
    for one in sorted(held, key=lambda pair: (pair[0].busy, pair[0].disk)):
        if not kept or one[0].disk < kept[-1][0].disk:
            kept.append(one)
    return kept
