"""What a device says of its models and windows, whether it leads or follows."""

from __future__ import annotations

from dataclasses import asdict

from edged.api.daemon_view import HopStatistics, ResidencyStatistics, Statistics
from edged.cluster.worker import Worker
from edged.rpc.messages import ModelSummary
from edged.store.catalogue import Catalogue
from edged.store.manifest import Manifest


def summary(manifest: Manifest, catalogue: Catalogue, loaded: str) -> ModelSummary:
    """`loaded` is the id of the model that is loaded, or empty."""
    return ModelSummary(
        name=manifest.name,
        id=manifest.id,
        architecture=manifest.architecture,
        n_layers=manifest.n_layers,
        n_ctx_train=manifest.n_ctx_train,
        size=sum(part.size for part in manifest.parts),
        held=catalogue.held(manifest),
        loaded=manifest.id == loaded,
        created=catalogue.created(manifest),
    )


def window_statistics(worker: Worker, name: str) -> Statistics:
    """Counters of the windows that run here, under the device's name."""
    stats = worker.stats
    residency = ResidencyStatistics(**asdict(worker.residency))
    if stats is None:
        return Statistics(residency=residency)
    return Statistics(
        hops=tuple(
            HopStatistics(
                hop=hop.hop,
                device=name,
                frames=hop.frames,
                compute_s=hop.compute_s,
                bytes_sent=hop.bytes_sent,
            )
            for hop in stats.hops
        ),
        frames_dropped=stats.dropped,
        residency=residency,
    )
