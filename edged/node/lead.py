"""The inside of the device that founded the cluster: it plans, heads the ring and answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from edged import __version__
from edged.api.daemon_view import Statistics
from edged.cluster.coordinator import Coordinator
from edged.cluster.identity import Identity
from edged.cluster.known_models import KnownModels
from edged.cluster.link_survey import LinkSurvey
from edged.cluster.membership import MemberEvent, Membership
from edged.cluster.messages import ClusterView
from edged.cluster.worker import Worker
from edged.node.figures import summary, window_statistics
from edged.planning.profile import DeviceProfile
from edged.rpc.messages import MemberStatus, ModelsAnswer, Progress, StatusAnswer
from edged.serving.generation import GenerateRequest, Generation
from edged.serving.head import Head
from edged.store.catalogue import Catalogue
from edged.store.manifest import Manifest

_SAID = {"joined": "is here", "left": "has left", "failed": "no longer answers"}  # by kind of event


class Lead:
    """What front doors reach on the head: Interior and DaemonView in one."""

    def __init__(
        self,
        *,
        identity: Identity,
        catalogue: Catalogue,
        models: KnownModels,
        membership: Membership,
        coordinator: Coordinator,
        head: Head,
        worker: Worker,
        survey: LinkSurvey,
        profile: Callable[[], DeviceProfile],
        port: int,
        rounds: int | None,
        say: Callable[[str], None],
    ) -> None:
        self._identity = identity
        self._catalogue = catalogue
        self._models = models
        self._membership = membership
        self._coordinator = coordinator
        self._head = head
        self._worker = worker
        self._survey = survey
        self._profile = profile
        self._port = port
        self._rounds = rounds
        self._say = say
        self._loading = threading.Lock()  # one request brings the model, the others find it there
        self.http = ""

    # ---- Interior

    def generate(self, request: GenerateRequest) -> Generation:
        manifest = self._chosen(request.model)
        state = self._coordinator.state
        there = state.wanted is not None and state.wanted.id == manifest.id == self._head.model
        if not there or state.state == "failed":
            with self._loading:
                self._coordinator.ensure(manifest)
        return self._head.generate(request, manifest)

    def load(self, model: str) -> Iterator[Progress]:
        return self._coordinator.load(self._models.find(model))

    def model_ids(self) -> set[str]:
        return {model.id for model in self._models.all()}

    def models(self) -> ModelsAnswer:
        loaded = self._head.model
        return ModelsAnswer(
            models=tuple(summary(model, self._catalogue, loaded) for model in self._models.all())
        )

    def status(self) -> StatusAnswer:
        state = self._coordinator.state
        engine = self._head.statistics
        return StatusAnswer(
            device=self._identity.device,
            name=self._identity.name,
            version=__version__,
            cluster=self._identity.cluster,
            coordinator=self._identity.device,
            http=self.http,
            state=state.state,
            problem=state.problem,
            model=state.wanted.name if state.wanted is not None else "",
            plan=state.plan if state.state != "failed" else None,
            members=self.members(),
            active_requests=engine.active,
            waiting_requests=engine.waiting,
            measured_tpot_ms=engine.tpot_ms,
            links=self._survey.known(),
            rounds=self._rounds,
            profiles=(self._profile(), *(member.report.profile for member in self._membership.alive())),
        )

    # ---- DaemonView

    def statistics(self) -> Statistics:
        return window_statistics(self._worker, self._identity.name)

    # ---- for the cluster

    def view(self) -> ClusterView:
        """What members learn with every heartbeat."""
        state = self._coordinator.state
        return ClusterView(
            coordinator=self._identity.device,
            members=self.members(),
            epoch=state.epoch,
            state=state.state,
            problem=state.problem,
            model=state.wanted.name if state.wanted is not None else "",
            plan=state.plan,
        )

    def members(self) -> tuple[MemberStatus, ...]:
        """This device first."""
        me = MemberStatus(
            device=self._identity.device,
            name=self._identity.name,
            address=f"port {self._port}",
            state="alive",
            is_coordinator=True,
            version=__version__,
            memory_budget=self._profile().memory_budget,
        )
        return (me, *self._membership.statuses())

    def member_event(self, event: MemberEvent) -> None:
        """Somebody came, went or has news: the coordinator is to know."""
        plan = self._coordinator.state.plan
        in_ring = plan is not None and event.member.device in plan.devices
        if in_ring and (broken := event.member.report.broken) is not None:
            why = f"{event.member.report.name}: {broken.reason}"
            self._coordinator.ring_broke(broken.epoch, why, broken.offender)
        if event.kind in _SAID:
            self._say(f"{event.member.report.name} {_SAID[event.kind]}")
        self._survey.members_changed()
        if event.kind in ("joined", "changed"):
            self._models.meet(event.member)
        if event.kind == "joined":
            self._coordinator.device_returned(event.member.device)
        else:
            self._coordinator.members_changed()

    def _chosen(self, name: str | None) -> Manifest:
        wanted = self._coordinator.state.wanted
        if wanted is not None and name in (None, wanted.name, wanted.id):
            return wanted
        return self._models.find(name) if name is not None else self._models.only()
