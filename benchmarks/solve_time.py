"""How long solving takes: clusters of 4, 32 and 128 devices, models of 80 and 126 layers.

    python -m benchmarks.solve_time [--repeat N]

What a user waits for: the ring that devices can carry out, polished. Seconds on the clock and of one thread's
processor time (the solver uses no other), the least of N solves.
"""

from __future__ import annotations

import argparse
import random
import time

from edged.planning.cost import Problem
from edged.planning.device_costs import Workload
from edged.planning.model_profile import LayerProfile, ModelProfile, TensorGroup
from edged.planning.plan import ContextOptions, Objective
from edged.planning.profile import ClusterProfile, DeviceProfile, LinkProfile, ProcessorProfile, TypeSpeed
from edged.planning.runnable import solve_runnable
from edged.planning.solve import Wishes

GIB = 2**30
SIZES = ((4, 80, 0.05), (32, 126, 1.0), (128, 126, 10.0))  # devices, layers, seconds it should take at most
LAYER = int(0.5 * GIB)
MEMORY = (0.7, 1.5)  # of the cluster's RAM, as a multiple of the model
OBJECTIVES: tuple[Objective, ...] = ("latency", "throughput")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    repeat = parser.parse_args().repeat
    heading = f"{'devices':>8}{'layers':>7}  {'alike':<7}{'links':<8}{'memory':>7}  {'objective':<11}"
    print(f"{heading}{'clock':>8}{'cpu':>8}{'aim':>7}")
    for devices, layers, aim in SIZES:
        for alike in (True, False):
            for measured in (False, True):
                for memory in MEMORY:
                    for objective in OBJECTIVES:
                        seconds = min(
                            _seconds(random_home(devices, layers, memory, alike, measured), objective)
                            for _ in range(repeat)
                        )
                        print(
                            f"{devices:>8}{layers:>7}  {'yes' if alike else 'no':<7}"
                            f"{'differ' if measured else 'alike':<8}{memory:>7}  {objective:<11}"
                            f"{seconds[0]:>8.3f}{seconds[1]:>8.3f}{aim:>7}",
                            flush=True,
                        )


def _seconds(problem: Problem, objective: Objective) -> tuple[float, float]:
    """On the clock, and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    wishes = Wishes(problem.context, objective=objective, workload=problem.workload)
    solve_runnable(problem.cluster, problem.model, wishes)
    return time.perf_counter() - clock, time.process_time() - processor


def random_home(
    n_devices: int, n_layers: int, memory: float, alike: bool, measured: bool, seed: int | None = None
) -> Problem:
    """memory: of all devices' RAM, as a multiple of the model.  measured: whether links differ."""
    rng = random.Random(n_devices if seed is None else seed)
    layers = tuple(_layer(LAYER if alike or i % 3 else LAYER * 9 // 8) for i in range(n_layers))
    total = sum(layer.nbytes for layer in layers)
    share = int(total * memory / n_devices)
    devices = tuple(_device(rng, i, share) for i in range(n_devices))
    links = ()
    if measured:
        links = tuple(
            LinkProfile(
                source=f"d{a}",
                target=f"d{b}",
                latency=rng.uniform(0.0003, 0.005),
                bandwidth=rng.uniform(1e7, 1e8),
            )
            for a in range(n_devices)
            for b in range(a)
        )
    model = ModelProfile(
        model="model",
        n_layers=n_layers,
        n_embd=8192,
        n_vocab=128256,
        n_heads=64,
        boundaries=tuple(range(1, n_layers)),
        layer_bytes=tuple(layer.nbytes for layer in layers),
        layers=layers,
        embedding_bytes=0,
        output_bytes=GIB,
        kv_bytes_per_token_layer=4096,
        n_ctx_train=8192,
    )
    cluster = ClusterProfile(head="d0", devices=devices, links=links)
    context = ContextOptions(n_ctx=2048, n_seq_max=1, n_ubatch=16, flash_attention="off")
    return Problem(cluster, model, context, Workload())


def _layer(nbytes: int) -> LayerProfile:
    group = TensorGroup(type="q4_K", nbytes=nbytes, weights=nbytes * 16 // 9)
    return LayerProfile(groups=(group,), kv_bytes_per_token=4096, largest_tensor=int(0.27 * nbytes))


def _device(rng: random.Random, index: int, share: int) -> DeviceProfile:
    speed = rng.uniform(5, 60) * 1e9
    processors = [_processor("CPU", "cpu", speed, 0)]
    if rng.random() < 0.3:
        processors.append(_processor("GPU", "gpu", 8 * speed, int(share * rng.uniform(0.3, 0.8))))
    return DeviceProfile(
        device=f"d{index}",
        name=f"d{index}",
        memory_budget=int(share * rng.uniform(0.5, 1.5)) + (3 * GIB if index == 0 else 0),
        disk_free=2**42,
        threads=1,
        bandwidth=speed,
        flops=10 * speed,
        processors=tuple(processors),
        disk_sequential=rng.uniform(0.3, 3) * 1e9,
    )


def _processor(name: str, kind: str, speed: float, memory: int) -> ProcessorProfile:
    return ProcessorProfile.model_validate(
        {
            "name": name,
            "kind": kind,
            "speeds": (TypeSpeed(type="", decode=speed, prefill=10 * speed),),
            "memory_bandwidth": 2 * speed,
            "memory_budget": memory,
            "run_s": 0.0002 if kind == "gpu" else 0.0,
        }
    )


if __name__ == "__main__":
    main()
