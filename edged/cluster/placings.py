"""Where a plan wants the layers of a device's windows: on the GPU, in memory, or streamed from disk."""

from __future__ import annotations

from edged.backend.residency import Placing
from edged.planning.plan import Plan
from edged.planning.streamed import spread
from edged.store.manifest import Manifest


def placings_of(plan: Plan, device: str, manifest: Manifest) -> dict[int, Placing]:
    """By place in the ring. An image of a streamed layer is named by the content of the layer's part."""
    read_ahead = 0
    for index in plan.hops_of(device):
        hop = plan.hops[index]
        if hop.streamed:
            largest = max(manifest.layer(layer).weight_bytes for layer in range(hop.first, hop.last))
            read_ahead = max(read_ahead, hop.read_ahead * largest)
    return {
        index: Placing(
            keys=tuple(manifest.layer(layer).sha256 for layer in range(hop.first, hop.last)),
            gpu_layers=hop.gpu_layers,
            streamed=spread(hop.n_layers, hop.streamed),
            read_ahead=read_ahead,
        )
        for index in plan.hops_of(device)
        for hop in [plan.hops[index]]
    }
