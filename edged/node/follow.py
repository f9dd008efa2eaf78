"""The inside of a device that joined a cluster: it runs its windows and passes questions on to the head."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import grpc

from edged import __version__
from edged.api.daemon_view import Statistics
from edged.cluster.address_book import Address
from edged.cluster.identity import Identity
from edged.cluster.messages import ClusterView
from edged.cluster.worker import Worker
from edged.errors import EdgedError, PeerLostError
from edged.frontdoor.client import FrontDoorClient
from edged.node.figures import summary, window_statistics
from edged.rpc.messages import ModelsAnswer, ModelSummary, Progress, StatusAnswer
from edged.serving.generation import GenerateRequest, Generation
from edged.store.catalogue import Catalogue

FIRST_WORD_S = 10.0  # the first heartbeat after the start has been answered or given up by then


class Follow:
    """What front doors reach on a member: Interior, DaemonView and HeartListener in one.

    head_at: where the head was reached last; raises PeerLostError while nobody knows.
    open_head: a channel to the head at that address, to close after use.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        catalogue: Catalogue,
        worker: Worker,
        head_at: Callable[[], Address],
        open_head: Callable[[Address], grpc.Channel],
        say: Callable[[str], None],
    ) -> None:
        self._identity = identity
        self._catalogue = catalogue
        self._worker = worker
        self._head_at = head_at
        self._open_head = open_head
        self._say = say
        self._lock = threading.Lock()
        self._view: ClusterView | None = None
        self._trouble = "the head has not been reached yet"
        self._heard = threading.Event()  # whether it can be reached is known
        self._channel: tuple[Address, grpc.Channel] | None = None
        self._closed = False
        self.http = ""

    # ---- Interior

    def generate(self, request: GenerateRequest) -> Generation:
        return self._head().generate(request)

    def load(self, model: str) -> Iterator[Progress]:
        return self._head().load(model)

    def models(self) -> ModelsAnswer:
        """The cluster's models as the head knows them; the own store's where the head is out of reach."""
        if self._view is not None:
            try:
                return ModelsAnswer(models=tuple(map(self._with_own_share, self._head().models())))
            except EdgedError:
                pass
        return ModelsAnswer(models=tuple(summary(m, self._catalogue, "") for m in self._catalogue.models()))

    def _with_own_share(self, model: ModelSummary) -> ModelSummary:
        """What is held here, not what the head holds."""
        own = next((one for one in self._catalogue.models() if one.id == model.id), None)
        return model.model_copy(update={"held": self._catalogue.held(own) if own is not None else 0})

    def status(self) -> StatusAnswer:
        view = self._view if not self._trouble else None  # what was true before is no news
        return StatusAnswer(
            device=self._identity.device,
            name=self._identity.name,
            version=__version__,
            cluster=self._identity.cluster,
            coordinator=self._identity.founder,
            http=self.http,
            state=view.state if view is not None else "failed",
            problem=self._trouble or (view.problem if view is not None else ""),
            model=view.model if view is not None else "",
            plan=view.plan if view is not None else None,
            members=view.members if view is not None else (),
            links=view.links if view is not None else (),
        )

    # ---- DaemonView

    def statistics(self) -> Statistics:
        return window_statistics(self._worker, self._identity.name)

    # ---- HeartListener

    def coordinator_says(self, view: ClusterView) -> None:
        if self._trouble:
            self._say(f"in the cluster {self._identity.cluster}: the head answers")
        self._view = view
        self._trouble = ""
        self._heard.set()

    def coordinator_lost(self, error: EdgedError) -> None:
        self._trouble = error.message
        self._heard.set()
        self._say(f"the head does not answer: {error.message}")

    def close(self) -> None:
        """Nothing is asked of the head any more, and what it is answering now ends. Idempotent."""
        self._closed = True
        self._heard.set()
        with self._lock:
            self._drop_channel()

    def _head(self) -> FrontDoorClient:
        self._heard.wait(FIRST_WORD_S)
        if self._trouble:
            raise PeerLostError(f"the head of this cluster cannot be reached: {self._trouble}")
        address = self._head_at()
        with self._lock:
            if self._closed:
                raise EdgedError("the daemon is stopping")
            if self._channel is not None and self._channel[0] != address:
                self._drop_channel()
            if self._channel is None:
                self._channel = address, self._open_head(address)
            return FrontDoorClient(self._channel[1], "the head")

    def _drop_channel(self) -> None:
        """Only where the head is elsewhere now: it ends every answer under way, and a beat is soon missed."""
        if self._channel is not None:
            self._channel[1].close()
            self._channel = None
