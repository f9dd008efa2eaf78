"""Self-describing documents: msgpack on the wire and on disk, frozen pydantic models in memory."""

from __future__ import annotations

from typing import Self, TypeVar

import msgpack
from pydantic import BaseModel, ConfigDict, ValidationError

from edged.errors import DocumentError, shown

MAX_DOCUMENT_BYTES = 64 * 2**20  # a manifest of a 1000-layer model is below 2 MiB
MAX_VALUES = 2**21  # in all; one byte on the wire can become a hundred in memory
MAX_IN_ONE = 2**17  # values of one list or map

_Container = TypeVar("_Container", tuple[object, ...], dict[str, object])


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
            return cls.model_validate(_unpack(body))
        except ValidationError as error:
            first = error.errors()[0]
            where = shown(".".join(str(step) for step in first["loc"])) or "document"
            raise DocumentError(f"not a {cls.__name__}: {where}: {shown(first['msg'], 200)}") from None
        except (msgpack.exceptions.StackError, RecursionError):
            raise DocumentError(f"not a {cls.__name__}: it is nested too deeply") from None
        except Exception as error:  # noqa: BLE001 - msgpack raises a dozen unrelated types on bad input
            raise DocumentError(f"not a {cls.__name__}: {shown(str(error), 200)}") from None


def _unpack(body: bytes) -> object:
    """The value in `body`. Raises ValueError, and much else that msgpack raises."""
    left = MAX_VALUES

    def count(container: _Container) -> _Container:
        nonlocal left
        left -= 1 + len(container)
        if left < 0:
            raise ValueError(f"it has more than {MAX_VALUES} values")
        return container

    return msgpack.unpackb(
        body,
        raw=False,
        use_list=False,
        strict_map_key=True,
        max_array_len=MAX_IN_ONE,
        max_map_len=MAX_IN_ONE,
        object_hook=count,
        list_hook=count,
    )
