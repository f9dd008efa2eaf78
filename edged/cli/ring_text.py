"""The ring in words, with the names people gave their devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edged.rpc.messages import StatusAnswer


def device_names(status: StatusAnswer) -> dict[str, str]:
    """Name per device id, this device's own included."""
    return {status.device: status.name} | {member.device: member.name for member in status.members}


def ring_text(status: StatusAnswer) -> str:
    """`nuc 0-9 → pi 10-19 → nuc 20-29`, layers counted from 0."""
    if status.plan is None:
        return "none"
    names = device_names(status)
    return " → ".join(
        f"{names.get(hop.device, hop.device[:12])} {layer_range(hop.first, hop.last)}"
        for hop in status.plan.hops
    )


def layer_range(first: int, last: int) -> str:
    """The layers [first, last) as people count: first to last, both included."""
    return f"{first}-{last - 1}" if last - first > 1 else str(first)
