"""The Store service: parts of this device for the others, by their SHA-256 and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import grpc

import edged.rpc.edged_pb2 as pb
from edged.errors import DocumentError, StoreError
from edged.rpc import edged_pb2_grpc
from edged.rpc.limit import Limit
from edged.rpc.status import guard
from edged.store.catalogue import Catalogue
from edged.store.messages import CatalogueAnswer, CatalogueQuery, PartAnswer, PartQuery

CHUNK = 2**20  # bytes in one message
TRANSFERS = 24  # at once: each holds one thread of the server, and heartbeats need some, too


class StoreService(edged_pb2_grpc.StoreServicer):
    """Serves what the catalogue holds; a transfer holds one thread of the server for as long as it takes."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._transfers = Limit(TRANSFERS, "transfers of layers")

    def add_to(self, server: grpc.Server) -> None:
        edged_pb2_grpc.add_StoreServicer_to_server(self, server)

    @guard
    def Which(self, request: pb.Document, context: grpc.ServicerContext) -> pb.Document:
        query = PartQuery.unpack(request.body)
        held = tuple(sha256 for sha256 in query.shas if self._catalogue.has(sha256))
        return pb.Document(body=PartAnswer(held=held).pack())

    @guard
    def Fetch(self, request: pb.PartRequest, context: grpc.ServicerContext) -> Iterator[pb.PartChunk]:
        path = self._catalogue.path(request.sha256)
        try:
            with self._transfers.one(), path.open("rb", buffering=0) as file:
                if request.offset > file.seek(0, 2):
                    raise DocumentError(f"the part {request.sha256[:12]} ends before byte {request.offset}")
                file.seek(request.offset)
                while data := file.read(CHUNK):
                    yield pb.PartChunk(data=data)
        except OSError as error:
            raise StoreError(f"cannot read the part {request.sha256[:12]}: {error.strerror}") from None

    @guard
    def Catalogue(self, request: pb.Document, context: grpc.ServicerContext) -> pb.Document:
        CatalogueQuery.unpack(request.body)
        manifests = tuple(manifest.pack() for manifest in self._catalogue.models())
        return pb.Document(body=CatalogueAnswer(manifests=manifests).pack())
