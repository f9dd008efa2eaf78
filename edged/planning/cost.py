"""The cost model that every solver is judged by: what a ring of hops will take, in time and memory.

The streamed layers of a window are spread evenly among the others (`edged.planning.streamed`), and all
windows of a device share one read-ahead buffer, whose places are single tensors, read in the order of their
use. When a visit begins the buffer is full; the disk goes on as soon as the first streamed tensor has been
computed with. Hence for a window with compute c, of which q before its first streamed layer and t for one
tensor, S streamed bytes, of which B fit into the buffer, and a disk of R bytes per second:

    visit = c                               if the buffer holds all streamed layers of the window
    visit = max(c, q + t + (S - B)/R + t)   otherwise.

Where the disk cannot fill the buffer before the next visit it works without a pause, and the token takes as
long as the disk: the sum of S over the device's windows, over R. So

    token = max(sum of visits + output side + sum of hops, every device's disk time)
    stage of a device = max(its visits + output side + hop overheads, its disk time)
    hop = latency + bytes of the frame / bandwidth + the receiver's overhead.

With many streams at once every device always has a frame waiting, so the slowest stage sets the pace. A
prompt goes round in chunks, back to back: the first takes a whole ring, each other one the slowest stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf

from edged.planning.device_costs import DeviceCosts, ModelCosts, Workload, device_costs
from edged.planning.model_profile import ModelProfile
from edged.planning.plan import ContextOptions, DeviceExpectation, Expectation, Hop, Objective, WireType
from edged.planning.profile import ClusterProfile

WIRE_BYTES: dict[WireType, float] = {"f32": 4, "f16": 2, "q8": 1.125}  # per value, as ring/wire.py packs it


@dataclass(frozen=True)
class Problem:
    """Everything a decision depends on, with what follows from it computed once."""

    cluster: ClusterProfile
    model: ModelProfile
    context: ContextOptions
    workload: Workload
    mixes: bool = True  # whether devices may stream layers while they have others on their GPUs

    @cached_property
    def of(self) -> ModelCosts:
        return ModelCosts(self.model, self.context, self.workload)

    @cached_property
    def devices(self) -> dict[str, DeviceCosts]:
        return {device.device: device_costs(device, self.of, self.mixes) for device in self.cluster.devices}

    @property
    def head(self) -> str:
        return self.cluster.head

    @cached_property
    def frame(self) -> float:
        """Bytes of one token's activations on the wire."""
        return self.model.state_bytes / 4 * WIRE_BYTES[self.context.wire_type]

    def hop_s(self, source: str, target: str, n_tokens: int = 1) -> float:
        """Seconds from the end of one window's work to the start of the next one's."""
        latency, per_token = self._hop(source, target)
        return latency + n_tokens * per_token

    def slowest_link(self, links: Sequence[tuple[str, str]], n_tokens: int) -> float:
        """Seconds that frames of n tokens keep the busiest link busy, one per time it is among `links`."""
        load: dict[tuple[str, str], float] = {}
        for ends in links:
            load[ends] = load.get(ends, 0.0) + n_tokens * self._hop(*ends)[1]
        return max(load.values(), default=0.0)

    @cached_property
    def _hops(self) -> dict[tuple[str, str], tuple[float, float]]:
        return {}

    def _hop(self, source: str, target: str) -> tuple[float, float]:
        """Seconds of a hop, and those that each token adds."""
        known = self._hops.get((source, target))
        if known is None:
            link = self.cluster.link(source, target)
            overhead = self.devices[target].profile.hop_overhead_s
            known = self._hops[source, target] = (link.latency + overhead, self.frame / link.bandwidth)
        return known


@dataclass(frozen=True, slots=True)
class Visit:
    """One window's cost per token."""

    compute: float  # seconds
    stall: float  # seconds waiting for the disk in the middle
    disk: float  # seconds of its disk's work
    chunk: float  # seconds of compute for a chunk of a prompt
    streamed: float  # bytes
    memory: float  # bytes of RAM, its share of the buffer not counted
    gpu_memory: float
    buffer: float  # bytes its device's read-ahead buffer must have for it
    can_run: bool = True


def layers_unhidden(of: ModelCosts, on_cpu: int, streamed: int) -> float:
    """Layers' worth of compute during which a window's disk has to pause, q + 2 t."""
    return on_cpu // streamed - 1 + 2 * of.largest_tensor


def visit(device: DeviceCosts, of: ModelCosts, hop: Hop) -> Visit:
    first_gpu = hop.first + hop.resident
    first_streamed = hop.last - hop.streamed
    ends = hop.last == of.model.n_layers
    cpu, gpu = device.cpu, device.gpu
    steady = cpu.decode.of(hop.first, first_gpu)
    chunk = cpu.chunk.of(hop.first, first_gpu) + cpu.chunk.of(first_streamed, hop.last)
    run = cpu.run
    gpu_memory = 0.0
    kept = of.weights.of(hop.first, first_gpu) + of.cache.of(hop.first, first_gpu)
    kept += of.cache.of(first_streamed, hop.last) + (of.last_overhead if ends else of.overhead)
    on_gpu = hop.gpu_layers > 0
    if on_gpu:
        assert gpu is not None
        steady += gpu.decode.of(first_gpu, first_streamed)
        chunk += gpu.chunk.of(first_gpu, first_streamed)
        run += gpu.run
        gpu_memory = of.weights.of(first_gpu, first_streamed) + of.cache.of(first_gpu, first_streamed)
        gpu_memory += of.overhead
    output = output_read = 0.0
    if ends:
        output = gpu.output if on_gpu and gpu is not None else cpu.output
        gpu_memory += of.model.output_bytes if on_gpu else 0
        if not on_gpu and (hop.streams_output or of.model.streams_output):
            kept += of.model.output_slots
            output_read = of.model.output_bytes
        else:
            kept += 0 if on_gpu else of.model.output_bytes
    streamed = of.weights.of(first_streamed, hop.last)
    compute = steady + cpu.decode.of(first_streamed, hop.last)
    fillers = of.fillers.get((hop.first, hop.last))
    if fillers is not None:
        more = (*fillers.before, *fillers.after)
        kept += sum(of.weights.of(i, i + 1) + of.cache.of(i, i + 1) for i in more)
        compute += sum(cpu.decode.of(i, i + 1) for i in fillers.before)
        chunk += sum(cpu.chunk.of(i, i + 1) for i in fillers.before)
    stall = disk = buffer = 0.0
    if hop.streamed:
        sizes = of.model.layer_bytes[first_streamed : hop.last]
        buffer = max(sizes) * hop.read_ahead
        disk = streamed / device.disk
        if hop.streamed > hop.read_ahead:
            unread = of.weights.of(first_streamed + hop.read_ahead, hop.last) / device.disk
            on_cpu = hop.n_layers - hop.gpu_layers
            layer = (cpu.decode.of(hop.first, first_gpu) + compute - steady) / on_cpu
            stall = max(0.0, layers_unhidden(of, on_cpu, hop.streamed) * layer + unread - compute)
    if output_read:  # in slices, of which the first ones come while the layers are computed
        late = 1.0 - of.model.output_slots / output_read
        reading = output_read / device.disk if device.disk > 0 else inf
        stall += late * max(0.0, reading - output)
        disk += reading
    return Visit(
        compute=compute + output + run,
        stall=stall,
        disk=disk,
        chunk=chunk + run,
        streamed=streamed + output_read,
        memory=kept + (gpu_memory if device.gpu_shares else 0.0),
        gpu_memory=gpu_memory,
        buffer=buffer,
        can_run=fillers is None or not hop.streamed,  # beside fillers nothing is streamed
    )


@dataclass(frozen=True)
class Share:
    """All windows of one device."""

    device: DeviceCosts
    visits: tuple[Visit, ...]
    stored: float  # bytes of its parts on disk

    @cached_property
    def compute(self) -> float:
        return sum(one.compute for one in self.visits)

    @cached_property
    def stall(self) -> float:
        return sum(one.stall for one in self.visits)

    @property
    def busy(self) -> float:
        """Seconds of its visits per token."""
        return self.compute + self.stall

    @cached_property
    def disk(self) -> float:
        return sum(one.disk for one in self.visits)

    @property
    def stage(self) -> float:
        """Seconds between two tokens where many streams are under way."""
        return max(self.busy + len(self.visits) * self.device.profile.hop_overhead_s, self.disk)

    @cached_property
    def memory(self) -> float:
        return sum(one.memory for one in self.visits) + max(one.buffer for one in self.visits)

    @cached_property
    def gpu_memory(self) -> float:
        return sum(one.gpu_memory for one in self.visits)

    @property
    def does_both(self) -> bool:
        """Whether it streams layers while it has others on its GPU."""
        return any(one.buffer for one in self.visits) and any(one.gpu_memory for one in self.visits)

    @property
    def fits(self) -> bool:
        profile = self.device.profile
        return (
            self.memory <= profile.memory_budget
            and self.gpu_memory <= self.device.gpu_budget
            and self.stored <= profile.disk_free
            and (self.device.disk > 0 or self.disk == 0)
            and all(one.can_run for one in self.visits)
            and (self.device.mixes or not self.does_both)
        )


def share(device: DeviceCosts, of: ModelCosts, hops: Sequence[Hop]) -> Share:
    """The cost of `hops`, all of one device."""
    stored = sum(of.weights.of(hop.first, hop.last) for hop in hops)
    ends = any(hop.last == of.model.n_layers for hop in hops)
    return Share(
        device, tuple(visit(device, of, hop) for hop in hops), stored + (of.model.output_bytes if ends else 0)
    )


@dataclass(frozen=True)
class RingCost:
    """What a ring takes. `shares` in order of first visit."""

    problem: Problem
    hops: tuple[Hop, ...]
    shares: dict[str, Share]

    @cached_property
    def links(self) -> tuple[tuple[str, str], ...]:
        return tuple((a.device, b.device) for a, b in zip(self.hops, self.hops[1:], strict=False))

    @cached_property
    def token(self) -> float:
        """Seconds per generated token, one stream."""
        way = sum(self.problem.hop_s(a, b) for a, b in self.links)
        return max(
            sum(share.busy for share in self.shares.values()) + way,
            *(share.disk for share in self.shares.values()),
        )

    @cached_property
    def stage(self) -> float:
        """Seconds per token of all streams together, where there are enough of them."""
        if not self.links:  # a device alone has nobody to send to
            return self.token
        return max(*(share.stage for share in self.shares.values()), self.problem.slowest_link(self.links, 1))

    @property
    def rounds(self) -> int:
        """How often the ring comes by its head, besides to close; 0 for a device alone."""
        return sum(hop.device == self.hops[0].device for hop in self.hops) - 1

    def goal(self, objective: Objective) -> float:
        return self.token if objective == "latency" else self.stage

    @property
    def fits(self) -> bool:
        return all(share.fits for share in self.shares.values())

    @cached_property
    def first_token(self) -> float:
        """Seconds until a prompt's first token."""
        of = self.problem.of
        chunks = of.workload.prompt / of.chunk
        return self._chunk_ring + (chunks - 1) * self.chunk_stage + self._output

    @cached_property
    def chunk_stage(self) -> float:
        """Seconds between two chunks of a prompt."""
        stages = [
            max(sum(one.chunk for one in share.visits), share.disk)
            + len(share.visits) * share.device.profile.hop_overhead_s
            for share in self.shares.values()
        ]
        return max(*stages, self.problem.slowest_link(self.links, self.problem.of.chunk))

    @cached_property
    def _chunk_ring(self) -> float:
        way = sum(self.problem.hop_s(a, b, self.problem.of.chunk) for a, b in self.links)
        work = sum(sum(one.chunk + one.stall for one in share.visits) for share in self.shares.values())
        return max(work + way, *(share.disk for share in self.shares.values()))

    @cached_property
    def _output(self) -> float:
        last = self.hops[-1]
        device = self.problem.devices[last.device]
        on_gpu = device.gpu is not None and last.gpu_layers > 0
        return device.gpu.output if on_gpu and device.gpu is not None else device.cpu.output

    def expectation(self) -> Expectation:
        way: dict[str, float] = {}
        for a, b in self.links:
            way[b] = way.get(b, 0.0) + self.problem.hop_s(a, b)
        return Expectation(
            tpot_ms=1e3 * self.token,
            ttft_ms_per_token=1e3 * self.chunk_stage / self.problem.of.chunk,
            bytes_read_per_token=int(sum(v.streamed for one in self.shares.values() for v in one.visits)),
            memory={device: int(share.memory) for device, share in self.shares.items()},
            ttft_ms=1e3 * self.first_token,
            prompt=self.problem.workload.prompt,
            stage_ms=1e3 * self.stage,
            devices=tuple(
                DeviceExpectation(
                    device=device,
                    compute_ms=1e3 * share.compute,
                    stall_ms=1e3 * share.stall,
                    hop_ms=1e3 * way.get(device, 0.0),
                    disk_ms=1e3 * share.disk,
                    bytes_read=int(sum(one.streamed for one in share.visits)),
                    memory=int(share.memory),
                    memory_left=int(share.device.profile.memory_budget - share.memory),
                    gpu_memory=int(share.gpu_memory),
                    gpu_memory_left=int(share.device.gpu_budget - share.gpu_memory),
                )
                for device, share in self.shares.items()
            ),
        )


def ring_cost(problem: Problem, hops: Sequence[Hop]) -> RingCost:
    """The cost of `hops`, in ring order. Does not judge whether they fit: see `RingCost.fits`."""
    by_device: dict[str, list[Hop]] = {}
    for hop in hops:
        by_device.setdefault(hop.device, []).append(hop)
    shares = {device: share(problem.devices[device], problem.of, own) for device, own in by_device.items()}
    return RingCost(problem, tuple(hops), shares)
