"""Rings that a running cluster can carry out: no device streams layers beside others on its GPU.

Such a device does either. A solver that does not know this gives a ring whose goal no allowed ring can beat;
so for one device of it that does both, both choices are tried, and given up where even the solver's ring is
no better than what was found: branch and bound.
"""

from __future__ import annotations

from edged.errors import PlanError
from edged.planning.cost import RingCost
from edged.planning.model_profile import ModelProfile
from edged.planning.profile import ClusterProfile, DeviceProfile
from edged.planning.solve import Wishes, solve

MOST_SOLVED = 24  # rings; then the best that was found


def solve_runnable(
    cluster: ClusterProfile, model: ModelProfile, wishes: Wishes, most: int = MOST_SOLVED
) -> RingCost:
    """As `solve`, without streaming beside a GPU; of `most` rings the best. Raises PlanError."""
    search = _Search(model, wishes, most)
    search.look(cluster)
    if search.best is None:
        raise search.refusal or PlanError(
            "the model fits only if devices read layers from disk beside others on their GPUs, which edged "
            "cannot do yet; add a device, allow more memory (--memory) or a shorter context (--ctx)"
        )
    return search.best


class _Search:
    def __init__(self, model: ModelProfile, wishes: Wishes, most: int) -> None:
        self._model, self._wishes = model, wishes
        self._left = self._most = most
        self.best: RingCost | None = None
        self.refusal: PlanError | None = None

    def look(self, cluster: ClusterProfile) -> None:
        if self._left == 0:
            return
        self._left -= 1
        try:
            ring = solve(cluster, self._model, self._wishes)
        except PlanError as error:
            if self._left == self._most - 1:
                self.refusal = error
            return
        goal = self._wishes.objective
        if self.best is not None and ring.goal(goal) >= self.best.goal(goal):
            return
        both = devices_doing_both(ring)
        if not both:
            self.best = ring
            return
        device = cluster.by_id[max(both, key=lambda name: ring.shares[name].disk)]
        for choice in (_without_streaming(device), _without_gpu(device)):
            self.look(cluster.with_device(choice))


def devices_doing_both(ring: RingCost) -> tuple[str, ...]:
    """Devices that stream layers and hold others on their GPU."""
    streaming = {hop.device for hop in ring.hops if hop.streamed}
    return tuple(dict.fromkeys(hop.device for hop in ring.hops if hop.gpu_layers and hop.device in streaming))


def _without_streaming(device: DeviceProfile) -> DeviceProfile:
    return device.model_copy(update={"disk_sequential": 0.0})


def _without_gpu(device: DeviceProfile) -> DeviceProfile:
    return device.model_copy(update={"processors": device.processors[:1]})
