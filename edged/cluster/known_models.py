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
from edged.store.catalogue import Catalogue
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
        self._elsewhere: dict[str, Manifest] = {}  # by id

    def meet(self, member: Member) -> None:
        """Ask a member about models that nobody here knows; what it cannot say is left out."""
        if not set(member.report.models) - {model.id for model in self.all()}:
            return
        channel = self._dial(member)
        try:
            answer = self._ask(channel, member.report.name)
        except EdgedError as error:
            log.info("%s did not say which models it has: %s", member.report.name, error.message)
            return
        finally:
            channel.close()
        with self._lock:
            self._elsewhere.update({manifest.id: manifest for manifest in answer})

    def all(self) -> tuple[Manifest, ...]:
        """Every model known, those of this device first; of one id, once."""
        with self._lock:
            known = dict(self._elsewhere)
        known.update({model.id: model for model in self._catalogue.models()})
        return tuple(sorted(known.values(), key=lambda model: model.name.casefold()))

    def find(self, name: str) -> Manifest:
        """As Catalogue.find, over the whole cluster. Raises UnknownModelError."""
        try:
            return self._catalogue.find(name)
        except UnknownModelError:
            with self._lock:
                named = [model for model in self._elsewhere.values() if name in (model.name, model.id)]
            if not named:
                raise
            return named[0]

    def only(self) -> Manifest:
        """The model meant where none is named. Raises UnknownModelError unless there is exactly one."""
        models = self.all()
        if len(models) == 1:
            return models[0]
        if not models:
            raise UnknownModelError("there is no model yet; bring one with `edged import` or `edged pull`")
        raise UnknownModelError(f"name a model: {', '.join(model.name for model in models)}")

    def _ask(self, channel: grpc.Channel, name: str) -> tuple[Manifest, ...]:
        stub = edged_pb2_grpc.StoreStub(channel)
        try:
            answer = stub.Catalogue(edged_pb2.Document(body=CatalogueQuery().pack()), timeout=ASK_S)
        except grpc.RpcError as error:
            raise unwrap(error, name) from None
        return tuple(Manifest.unpack(body) for body in CatalogueAnswer.unpack(answer.body).manifests)
