"""Where a plan wants the layers of a device's windows: on the GPU, in memory, or streamed from disk.

A plan counts in whole layers. Here its bytes are put to better use: the read-ahead gets a slice to compute
with and what is to come while that is done, and slices of the streamed layers stay in what the plan has for
it beyond that and in what the plan leaves of the device's memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from edged.backend.residency import SLICE_BYTES, Placing
from edged.planning.plan import Hop, Plan
from edged.planning.streamed import spread
from edged.store.manifest import Manifest, TensorEntry
from edged.store.model_profile import model_profile

PAGE = 4096  # bytes: what is read begins and ends on one
# What comes while others compute: memory for it is memory that keeps nothing. Of a device that streams in
# one window it saves as much time as it costs, so it is little. Where the ring comes by several times it is
# filled each time, and may be as much as leaves what is read for a token within a tenth of the least. All are
# one part in so many.
AHEAD_OF_ONE_VISIT = 32
AHEAD_OF_VISITS = 14  # with the slice that is computed with
AHEAD_OF_SLICE = 8  # at least


def placings_of(plan: Plan, device: str, manifest: Manifest) -> dict[int, Placing]:
    """By place in the ring. An image of a streamed layer is named by the content of the layer's part."""
    hops = [plan.hops[index] for index in plan.hops_of(device)]
    read_ahead, spare = _buffers(plan, device, hops, manifest)
    streamed = sum(_streamed_bytes(hop, manifest) for hop in hops)
    return {
        index: Placing(
            keys=tuple(manifest.layer(layer).sha256 for layer in range(hop.first, hop.last)),
            gpu_layers=hop.gpu_layers,
            streamed=spread(hop.n_layers, hop.streamed),
            read_ahead=read_ahead,
            spare=spare * _streamed_bytes(hop, manifest) // max(1, streamed),
            output_key=manifest.output_key if hop.streams_output else "",
        )
        for index, hop in zip(plan.hops_of(device), hops, strict=True)
    }


def _buffers(plan: Plan, device: str, hops: Sequence[Hop], manifest: Manifest) -> tuple[int, int]:
    """Bytes for reading ahead, and for tensors of streamed layers that stay. Both of all windows together."""
    streaming = [hop for hop in hops if hop.streamed or hop.streams_output]
    parts = [manifest.layer(layer) for hop in streaming for layer in range(hop.first, hop.last)]
    if not parts:
        return 0, 0
    planned = max(
        (
            hop.read_ahead * manifest.layer(layer).weight_bytes
            for hop in hops
            if hop.streamed
            for layer in range(hop.first, hop.last)
        ),
        default=0,
    )
    tensors = [tensor for part in parts for tensor in part.tensors]
    if any(hop.streams_output for hop in streaming):
        planned += model_profile(manifest).output_slots
    if any("_exps." in tensor.name for tensor in tensors):
        return planned, 0  # experts share the buffer, as a cache
    largest = max(-(-tensor.nbytes // PAGE) * PAGE for tensor in tensors)
    slice_bytes = max(_read_at_once(tensor) for tensor in tensors)
    room = planned + _left(plan, device) + _fewer(hops, manifest)
    least = slice_bytes + slice_bytes // AHEAD_OF_SLICE
    read = sum(_streamed_bytes(hop, manifest) for hop in streaming) - max(0, room - least)
    if len(streaming) == 1:
        ahead = min(largest, read // AHEAD_OF_ONE_VISIT)
    else:
        ahead = min(read // len(streaming), read // AHEAD_OF_VISITS - slice_bytes)
    ahead = max(slice_bytes // AHEAD_OF_SLICE, ahead)
    read_ahead = min(planned, slice_bytes + ahead)
    return read_ahead, max(0, room - read_ahead)


def _read_at_once(tensor: TensorEntry) -> int:
    """Bytes; where its kernels do not let a matrix be cut, the device makes up for it."""
    whole = -(-tensor.nbytes // PAGE) * PAGE
    return min(whole, SLICE_BYTES) if len(tensor.shape) == 2 else whole


def _left(plan: Plan, device: str) -> int:
    """Bytes of the device's memory that the plan does not use."""
    devices = plan.expected.devices if plan.expected is not None else ()
    return sum(max(0, one.memory_left) for one in devices if one.device == device)


def _fewer(hops: Sequence[Hop], manifest: Manifest) -> int:
    """Negative: bytes by which more is resident than a plan counts that streams the last layers of a hop."""
    planned = spread_out = 0
    for hop in hops:
        planned += sum(
            manifest.layer(layer).weight_bytes for layer in range(hop.last - hop.streamed, hop.last)
        )
        layers = spread(hop.n_layers, hop.streamed)
        spread_out += sum(manifest.layer(hop.first + layer).weight_bytes for layer in layers)
    return min(0, spread_out - planned)


def _streamed_bytes(hop: Hop, manifest: Manifest) -> int:
    layers = spread(hop.n_layers, hop.streamed)
    output = model_profile(manifest).output_bytes if hop.streams_output else 0
    return output + sum(manifest.layer(hop.first + layer).weight_bytes for layer in layers)
