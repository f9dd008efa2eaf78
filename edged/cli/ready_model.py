"""Before a question: the model it is for is loaded, or being loaded in front of the user's eyes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edged.cli.progress import follow
from edged.errors import UnknownModelError

if TYPE_CHECKING:
    from edged.frontdoor.client import FrontDoorClient


def ready_model(client: FrontDoorClient, wanted: str | None) -> str:
    """The name of the loaded model: `wanted`, or else whatever is loaded, or else the only one there is.

    `wanted` is whatever the daemon takes for a model's name. Raises UnknownModelError where nothing fits, and
    what loading raises.
    """
    status = client.status()
    if status.state == "ready" and status.model and wanted in (None, status.model):
        return status.model
    chosen = wanted or status.model or _only_model(client)
    follow(client.load(chosen))
    return client.status().model or chosen


def _only_model(client: FrontDoorClient) -> str:
    names = [model.name for model in client.models()]
    if len(names) == 1:
        return names[0]
    if names:
        raise UnknownModelError(f"several models are here; name one of: {', '.join(names)}")
    raise UnknownModelError("there is no model yet; get one with: edged import FILE, or: edged pull NAME")
