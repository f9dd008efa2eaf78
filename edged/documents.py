"""Self-describing documents: msgpack on the wire and on disk, frozen pydantic models in memory."""

from __future__ import annotations

from typing import Self

import msgpack
from pydantic import BaseModel, ConfigDict, ValidationError

from edged.errors import DocumentError

MAX_DOCUMENT_BYTES = 64 * 2**20  # a manifest of a 1000-layer model is below 2 MiB


class Document(BaseModel):
    """A frozen value that refuses unknown fields; `pack` and `unpack` are inverse."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64")

    def pack(self) -> bytes:
        return bytes(msgpack.packb(self.model_dump(mode="python"), use_bin_type=True))

    @classmethod
    def unpack(cls, body: bytes) -> Self:
        """Raises DocumentError on anything that is not exactly this document."""
        if len(body) > MAX_DOCUMENT_BYTES:
            raise DocumentError(f"a {cls.__name__} of {len(body)} bytes is too large")
        try:
            value = msgpack.unpackb(body, raw=False, use_list=False, strict_map_key=True)
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(step) for step in first["loc"]) or "document"
            raise DocumentError(f"not a {cls.__name__}: {where}: {first['msg']}") from None
        except Exception as error:  # noqa: BLE001 - msgpack raises a dozen unrelated types on bad input
            raise DocumentError(f"not a {cls.__name__}: {error}") from None
