"""What the coordinator asks of planning: a plan for those who are there, and whether it is worth a switch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edged.cluster.steady import SteadyBudgets, tolerance
from edged.errors import PlanError
from edged.planning.cost import Problem, ring_cost
from edged.planning.plan import ContextOptions, LeftOut, Objective, Plan
from edged.planning.profile import ClusterProfile, DeviceProfile, LinkProfile
from edged.planning.running import Switching, plan_to_run, worth_switching
from edged.planning.solve import TYPICAL
from edged.store.manifest import Manifest
from edged.store.model_profile import model_profile

NO_GAIN = "with it the ring would not be so much faster that it pays to disturb the one that runs"
LIKELY_TOKENS = 20_000  # generated before things change again: a household's day

Company = tuple[frozenset[DeviceProfile], frozenset[tuple[str, int]], frozenset[LinkProfile]]
"""Who is there, as far as a plan depends on it for longer than a moment."""


class RingPlanner:
    """Used by the coordinator's thread alone."""

    def __init__(
        self,
        profile: Callable[[], DeviceProfile],
        links: Callable[[], tuple[LinkProfile, ...]],
        wish: Callable[[Manifest], ContextOptions],
        objective: Objective,
        rounds: int | None = None,
    ) -> None:
        """profile: of this device, the head. links: those measured between devices that are there.

        rounds: how often a ring of several devices comes by each; None for the best number.
        """
        self._profile = profile
        self._links = links
        self._wish = wish
        self._objective = objective
        self._rounds = rounds
        self._budgets = SteadyBudgets()

    def company(self, others: Mapping[str, DeviceProfile]) -> tuple[Company, float | None]:
        """Who is there, and in how many seconds a memory may have changed for good (None: none changes)."""
        devices = [self._profile(), *others.values()]
        budgets, look_again = self._budgets.see({device.device: device.memory_budget for device in devices})
        lasting = frozenset(device.lasting for device in devices)
        return (lasting, frozenset(budgets.items()), frozenset(self._links())), look_again

    def plan(self, manifest: Manifest, others: Mapping[str, DeviceProfile], epoch: int) -> Plan:
        """Raises PlanError."""
        return plan_to_run(
            self._cluster(others),
            model_profile(manifest),
            self._wish(manifest),
            self._objective,
            manifest.n_ctx_train,
            epoch,
            self._rounds,
        )

    def kept(
        self, running: Plan, manifest: Manifest, others: Mapping[str, DeviceProfile], switch_s: float
    ) -> Plan | None:
        """The plan that runs, with what to expect of it and why others are left out, as known now.

        None if another is to replace it.

        Asked after a change of company. Raises PlanError.
        """
        cluster, model = self._cluster(others), model_profile(manifest)
        try:
            plan = self.plan(manifest, others, running.epoch + 1)
        except PlanError:
            if set(running.devices) <= {device.device for device in cluster.devices}:
                return running  # it holds its memory already; a new one would have to find some
            raise
        if running.hops != plan.hops or running.context != plan.context:
            if self._rounds is not None and len(running.hops) == 1:
                return None  # alone as long as there was nobody else
            switching = Switching(seconds=switch_s, tokens=LIKELY_TOKENS)
            if worth_switching(running, plan, cluster, model, switching, _tolerant(cluster)):
                return None
        as_now = ring_cost(Problem(cluster, model, running.context, TYPICAL), running.hops)
        left_out = {one.device: one for one in plan.left_out}
        outside = [device for device in others if device not in running.devices]
        return running.model_copy(
            update={
                "expected": as_now.expectation(),
                "left_out": tuple(
                    left_out.get(device) or LeftOut(device=device, reason=NO_GAIN) for device in outside
                ),
            }
        )

    def _cluster(self, others: Mapping[str, DeviceProfile]) -> ClusterProfile:
        me = self._profile()
        ids = {me.device, *others}
        links = tuple(link for link in self._links() if {link.source, link.target} <= ids)
        return ClusterProfile(head=me.device, devices=(me, *others.values()), links=links)


def _tolerant(cluster: ClusterProfile) -> ClusterProfile:
    """With so much more memory as a plan that runs may be short of: what is free goes up and down."""
    return cluster.with_devices(
        tuple(
            device.model_copy(
                update={"memory_budget": device.memory_budget + tolerance(device.memory_budget)}
            )
            for device in cluster.devices
        )
    )
