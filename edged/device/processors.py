"""How fast this device's processors multiply by the weights of a model, type by type."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from edged.backend import native
from edged.backend.native import GgmlDevice, Meter, Speed
from edged.device.machine import last_cache_bytes, shares_memory_with_gpu
from edged.device.type_speeds import ROUNDS, type_speeds
from edged.errors import WindowError
from edged.planning.context import CHUNK_IN_RING
from edged.planning.profile import ProcessorProfile, TypeSpeed

log = logging.getLogger(__name__)

TYPES = (
    "q4_0",
    "q4_1",
    "q5_0",
    "q8_0",
    "q2_K",
    "q3_K",
    "q4_K",
    "q5_K",
    "q6_K",
    "iq4_nl",
    "iq4_xs",
    "mxfp4",
    "f16",
    "bf16",
)
"""What most files are made of, by ggml's names. Others count as the slowest of these."""

TYPE_MS = 30  # per type and round, set-up aside: five runs and more on a laptop, three on the slowest machine
READ_MS = 60
DEPTH_OF_ONE = 1024  # positions that one token's attention is measured with: a conversation well under way
DEPTH_OF_CHUNK = 256  # that a chunk's is: fewer, or a run would take so long that it is always interrupted
LEAST_MEMORY = 64 * 2**20  # bytes of weights: more than most caches hold, and quickly made
MOST_MEMORY = 256 * 2**20
# Seconds of a window, one token, per second of its matrix products alone: norms, activations, additions,
# and what these displace from caches. Measured with `python -m benchmarks.prediction`: Q4_0 1.09, Q8_0 1.12,
# Q4_K 1.12, Q6_K 1.11, F16 1.17.
OTHER_WORK = 1.11
# What a window takes besides, each time: threads wake, a graph begins, caches hold what others used. One
# layer takes so much more than another one adds, after a pause of 15 ms (one thread 0.2 ms, two 0.3); in
# a ring of daemons it is 0.3 to 0.5.
WINDOW_START_S = 0.0003
CACHES = 2  # so many times the last cache, so that it helps no more than with a model's weights


def computing_devices() -> tuple[GgmlDevice, ...]:
    """The CPU first, then the GPUs. Libraries that only help the CPU are left out."""
    found = native.devices()
    return (
        *(device for device in found if device.kind == "cpu"),
        *(device for device in found if device.kind in ("gpu", "igpu")),
    )


def measure_processors(
    threads: int, memory: int, step: Callable[[], None], types: Sequence[str] = TYPES
) -> tuple[ProcessorProfile, ...]:
    """The CPU, then the GPUs that can be measured. `memory`: bytes it may take, but for some at least.

    step: called before each of `steps()` measurements. Raises WindowError where the CPU cannot be measured.
    """
    room = min(memory, max(LEAST_MEMORY, min(MOST_MEMORY, CACHES * last_cache_bytes())))
    found = []
    for device in computing_devices():
        try:
            found.append(_measure(device, threads, room, step, types))
        except WindowError as error:
            if device.kind == "cpu":
                raise
            log.warning("%s is left out: %s", device.name, error.message)
    return tuple(found)


def steps(types: Sequence[str] = TYPES) -> int:
    """How often `measure_processors` calls `step`, where every processor can be measured."""
    return len(computing_devices()) * (ROUNDS * len(types) + 3)


def _measure(
    device: GgmlDevice, threads: int, room: int, step: Callable[[], None], types: Sequence[str]
) -> ProcessorProfile:
    is_cpu = device.kind == "cpu"
    if not is_cpu:
        room = min(MOST_MEMORY, device.memory_free // 8)
    meter = Meter(device.name, threads)

    def product(ggml_type: str) -> Speed | None:
        return meter.products(ggml_type, batch=CHUNK_IN_RING, milliseconds=TYPE_MS, memory=room)

    def attention() -> tuple[float, float]:
        step()
        one = meter.attention(1, depth=DEPTH_OF_ONE, milliseconds=TYPE_MS)
        chunk = meter.attention(CHUNK_IN_RING, depth=DEPTH_OF_CHUNK, milliseconds=TYPE_MS)
        return one or 0.0, chunk or 0.0

    before = attention()
    speeds = type_speeds(product, types, step)
    if not speeds:
        raise WindowError(f"{device.name} multiplies by no type of weights that edged measures")
    after = attention()  # some seconds later: an interruption seldom meets both
    step()
    other_work = OTHER_WORK if is_cpu else 1.0
    # A product reads its weights once: memory is at least as fast as the fastest of them.
    reading = [speed.bandwidth for speed in speeds.values()]
    if is_cpu:
        reading.append(native.read_bandwidth(threads, READ_MS, room))
    return ProcessorProfile(
        name=device.name,
        kind="cpu" if is_cpu else "gpu",
        description=device.description,
        speeds=tuple(
            TypeSpeed(type=name, decode=speed.bandwidth / other_work, prefill=speed.flops)
            for name, speed in speeds.items()
        ),
        memory_bandwidth=max(reading),
        run_s=WINDOW_START_S if is_cpu else 0.0,
        attention_decode=max(before[0], after[0]),
        attention_prefill=max(before[1], after[1]),
        shares_memory=not is_cpu and (device.kind == "igpu" or shares_memory_with_gpu()),
    )
