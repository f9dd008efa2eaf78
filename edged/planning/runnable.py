"""Rings that a running cluster can carry out: no device streams layers beside others on its GPU.

Such a device does either. Every solver picks one way per device out of those that it can do, so this only
makes the choice smaller (`DeviceCosts.mixes`).
"""

from __future__ import annotations

from dataclasses import replace

from edged.errors import PlanError
from edged.planning.cost import RingCost
from edged.planning.model_profile import ModelProfile
from edged.planning.profile import ClusterProfile
from edged.planning.solve import Wishes, solve


def solve_runnable(cluster: ClusterProfile, model: ModelProfile, wishes: Wishes) -> RingCost:
    """As `solve`, without streaming beside a GPU. Raises PlanError."""
    try:
        return solve(cluster, model, replace(wishes, mixes=False))
    except PlanError:
        solve(cluster, model, wishes)  # if this is refused too, it says why
        raise PlanError(
            "the model fits only if devices read layers from disk beside others on their GPUs, which edged "
            "cannot do yet; add a device, allow more memory (--memory) or a shorter context (--ctx)"
        ) from None


def devices_doing_both(ring: RingCost) -> tuple[str, ...]:
    """Devices that stream layers and hold others on their GPU."""
    return tuple(device for device, share in ring.shares.items() if share.does_both)
