"""The models of the cluster: those in the own store, and those that other devices hold."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import grpc

from edged.cluster.membership import Member
from edged.errors import EdgedError, UnknownModelError
from edged.rpc import edged_pb2, edged_pb2_grpc
from edged.rpc.status import unwrap
from edged.store.catalogue import Catalogue, find_model
from edged.store.manifest import Manifest
from edged.store.messages import CatalogueAnswer, CatalogueQuery

log = logging.getLogger(__name__)

ASK_S = 5.0


class KnownModels:
    """Finds a model by name wherever in the cluster it is. `dial` opens a channel to a member."""

    def __init__(self, catalogue: Catalogue, dial: Callable[[Member], grpc.Channel]) -> None:
        self._catalogue = catalogue
        self._dial = dial
        self._lock = threading.Lock()
        self._owned: dict[str, frozenset[str]] = {}  # device -> ids of models, as it reported last
        self._manifests: dict[str, Manifest] = {}  # by id, of what others own
        self._asked: grpc.Channel | None = None  # the member that is being asked
        self._called_off = False

    def meet(self, member: Member) -> None:
        """Take in what a member owns, and ask it about models that are new."""
        owned = frozenset(member.report.models)
        with self._lock:
            self._owned[member.device] = owned
            unknown = owned - self._manifests.keys()
        if not unknown:
            return
        try:
            channel = self._dial(member)
            with self._lock:
                self._asked = channel
                off = self._called_off
            try:
                answer = () if off else self._ask(channel, member.report.name)
            finally:
                with self._lock:
                    self._asked = None
                channel.close()
        except EdgedError as error:
            log.info("%s did not say which models it has: %s", member.report.name, error.message)
            return
        with self._lock:
            self._manifests.update({manifest.id: manifest for manifest in answer})

    def call_off(self) -> None:
        """The daemon stops: nobody is asked any more."""
        with self._lock:
            self._called_off = True
            asked = self._asked
        if asked is not None:
            asked.close()

    def all(self) -> tuple[Manifest, ...]:
        """Every model that somebody owns, each once, by name."""
        known = {model.id: model for model in self._catalogue.models() if self._catalogue.owns(model)}
        with self._lock:
            for model in frozenset().union(*self._owned.values()):
                if model in self._manifests:
                    known.setdefault(model, self._manifests[model])
        return tuple(sorted(known.values(), key=lambda model: (model.name.casefold(), model.id)))

    def find(self, name: str) -> Manifest:
        """The model of this name, id, or beginning of either. Raises UnknownModelError, which lists them."""
        try:
            return find_model(name, self.all())
        except UnknownModelError as error:
            raise UnknownModelError("; ".join((error.message, *self._catalogue.damaged()))) from None

    def only(self) -> Manifest:
        """The model meant where none is named. Raises UnknownModelError unless there is exactly one."""
        models = self.all()
        if len(models) == 1:
            return models[0]
        if not models:
            none = "there is no model yet; bring one with `edged import` or `edged pull`"
            raise UnknownModelError("; ".join((none, *self._catalogue.damaged())))
        raise UnknownModelError(f"name a model: {', '.join(model.name for model in models)}")

    def _ask(self, channel: grpc.Channel, name: str) -> tuple[Manifest, ...]:
        stub = edged_pb2_grpc.StoreStub(channel)
        try:
            answer = stub.Catalogue(edged_pb2.Document(body=CatalogueQuery().pack()), timeout=ASK_S)
        except grpc.RpcError as error:
            raise unwrap(error, name) from None
        return tuple(Manifest.unpack(body) for body in CatalogueAnswer.unpack(answer.body).manifests)
