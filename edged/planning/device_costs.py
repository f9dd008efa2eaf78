"""Seconds and bytes of every layer on one device: what cost model and solvers look up instead of computing.

A layer takes, for a batch of n tokens, the sum over its groups of weights of
    max(bytes touched / decode, n * flops / prefill),
the roofline of Williams, Waterman and Patterson (2009) with the two speeds that were measured, and for the
positions before it attention: their keys and values over the memory's bandwidth, or the operations over the
speed of attention, whichever takes longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import ceil

from pydantic import Field

from edged.documents import Document
from edged.planning.footprint import KV_BITS, window_overhead
from edged.planning.model_profile import Fillers, LayerProfile, ModelProfile, TensorGroup
from edged.planning.plan import ContextOptions
from edged.planning.profile import DeviceProfile, ProcessorProfile

CELL_BLOCK = 256  # positions: llama.cpp computes attention over whole blocks of the cache


class Workload(Document):
    """What is asked of a plan: a typical request."""

    prompt: int = Field(default=128, ge=1)  # tokens
    depth: int = Field(default=256, ge=0)  # positions in the cache while a token is generated


@dataclass(frozen=True, slots=True)
class Span:
    """Sums over consecutive layers by their prefixes: `of(a, b)` is the sum over layers [a, b)."""

    prefix: tuple[float, ...]

    @classmethod
    def over(cls, values: Iterable[float]) -> Span:
        return cls((0.0, *accumulate(values)))

    def of(self, first: int, last: int) -> float:
        return self.prefix[last] - self.prefix[first]


@dataclass(frozen=True)
class ModelCosts:
    """What of a model does not depend on the device."""

    model: ModelProfile
    context: ContextOptions
    workload: Workload

    @cached_property
    def kinds(self) -> tuple[LayerProfile, ...]:
        """Layers that differ, each once."""
        return tuple(dict.fromkeys(self.model.known_layers))

    @cached_property
    def kind_of(self) -> tuple[int, ...]:
        index = {kind: i for i, kind in enumerate(self.kinds)}
        return tuple(index[layer] for layer in self.model.known_layers)

    @cached_property
    def weights(self) -> Span:
        """Bytes of weights."""
        return Span.over(self.model.layer_bytes)

    @cached_property
    def cache(self) -> Span:
        """Bytes of KV cache."""
        cells = self.context.n_ctx * self.context.n_seq_max
        per_kind = [int(kind.kv_bytes_per_token * self.kv_scale * cells) for kind in self.kinds]
        return Span.over(per_kind[i] for i in self.kind_of)

    @cached_property
    def fillers(self) -> dict[tuple[int, int], Fillers]:
        """By window."""
        return {(one.first, one.last): one for one in self.model.fillers}

    @cached_property
    def largest_tensor(self) -> float:
        """Of a layer's bytes, what is read from disk at once; where tensors are not known, all of them."""
        return max(kind.largest_tensor / kind.nbytes if kind.largest_tensor else 1.0 for kind in self.kinds)

    @property
    def kv_scale(self) -> float:
        return KV_BITS[self.context.kv_type] / 16

    @property
    def chunk(self) -> int:
        """Prompt tokens in one frame."""
        return min(self.context.n_ubatch, self.workload.prompt)

    @cached_property
    def overhead(self) -> int:
        """Bytes of a window besides weights and cache."""
        return window_overhead(self.model, self.context, yields_logits=False)

    @cached_property
    def last_overhead(self) -> int:
        """The same of the window that yields logits."""
        return window_overhead(self.model, self.context, yields_logits=True)

    @property
    def uniform(self) -> bool:
        return len(self.kinds) == 1

    @cached_property
    def places(self) -> tuple[int, ...]:
        """Where windows may begin and end, the model's ends among them; the preferred ones if any are."""
        cuts = self.model.preferred or self.model.boundaries
        return (0, *cuts, self.model.n_layers)


@dataclass(frozen=True)
class ProcessorCosts:
    """One processor's seconds."""

    decode: Span  # per token
    chunk: Span  # per chunk of a prompt
    output: float  # the output side, one token
    run: float  # to start a window


@dataclass(frozen=True)
class DeviceCosts:
    """One device's seconds and limits for one model, context and workload."""

    profile: DeviceProfile
    cpu: ProcessorCosts
    gpu: ProcessorCosts | None
    gpu_budget: int
    gpu_shares: bool  # what is on the GPU counts as RAM too
    disk: float  # bytes per second of large reads; 0: nothing can be streamed
    mixes: bool = True  # whether it may stream layers while it has others on its GPU

    @property
    def name(self) -> str:
        return self.profile.name


def best_gpu(device: DeviceProfile) -> ProcessorProfile | None:
    """The GPU that edged uses of a device: the one that gets most of a model done in a second."""
    usable = [gpu for gpu in device.gpus if gpu.memory_budget > 0]
    return max(usable, key=lambda gpu: gpu.speed("q4_K").decode * gpu.memory_budget, default=None)


def device_costs(device: DeviceProfile, of: ModelCosts, mixes: bool = True) -> DeviceCosts:
    gpu = best_gpu(device)
    return DeviceCosts(
        profile=device,
        cpu=_processor_costs(device.cpu, of),
        gpu=None if gpu is None else _processor_costs(gpu, of),
        gpu_budget=0 if gpu is None else gpu.memory_budget,
        gpu_shares=gpu is not None and gpu.shares_memory,
        disk=device.disk_sequential,
        mixes=mixes,
    )


def _processor_costs(processor: ProcessorProfile, of: ModelCosts) -> ProcessorCosts:
    def layer(kind: LayerProfile, n_tokens: int, depth: float) -> float:
        return products_s(kind.groups, processor, n_tokens) + attention_s(
            kind, processor, of, n_tokens, depth
        )

    decode = [layer(kind, 1, of.workload.depth) for kind in of.kinds]
    chunk = [layer(kind, of.chunk, of.workload.prompt / 2) for kind in of.kinds]
    return ProcessorCosts(
        decode=Span.over(decode[i] for i in of.kind_of),
        chunk=Span.over(chunk[i] for i in of.kind_of),
        output=products_s(of.model.known_output, processor, 1),
        run=processor.run_s,
    )


def attention_s(
    kind: LayerProfile, processor: ProcessorProfile, of: ModelCosts, n_tokens: int, depth: float
) -> float:
    """Seconds in which n_tokens attend to `depth` positions in one layer: its cache is read, and each query
    is multiplied with every key and value. As wide as the state is, which most models' queries are.
    """
    if not kind.kv_bytes_per_token:
        return 0.0
    cells = CELL_BLOCK * max(1, ceil(depth / CELL_BLOCK))
    reading = kind.kv_bytes_per_token * of.kv_scale * cells / processor.memory_bandwidth
    speed = processor.attention_decode if n_tokens == 1 else processor.attention_prefill
    return max(reading, 4.0 * of.model.n_embd * cells * n_tokens / speed) if speed else reading


def products_s(groups: Sequence[TensorGroup], processor: ProcessorProfile, n_tokens: int) -> float:
    """Seconds of the matrix products of `groups` with n_tokens columns."""
    seconds = 0.0
    for group in groups:
        speed = processor.speed(group.type)
        seconds += max(group.touched(n_tokens) / speed.decode, n_tokens * group.flops / speed.prefill)
    return seconds
