"""Documents of the Store service."""

from __future__ import annotations

from pydantic import Field

from edged.documents import Document

MOST_PARTS = 4096  # in one question; a model has a few hundred


class PartQuery(Document):
    shas: tuple[str, ...] = Field(max_length=MOST_PARTS)


class PartAnswer(Document):
    """Those of the parts asked for that are here."""

    held: tuple[str, ...]


class CatalogueQuery(Document):
    pass


class CatalogueAnswer(Document):
    manifests: tuple[bytes, ...]  # packed store.manifest.Manifest, of every model known here
