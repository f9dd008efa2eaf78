"""Membership as the coordinator plans with it."""

from __future__ import annotations

from edged.cluster.coordinator import Peer
from edged.cluster.membership import Membership


class MembershipRoster:
    """The coordinator's Roster: whoever is alive, by its last report."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership

    def alive(self) -> list[Peer]:
        return [
            Peer(
                device=member.device,
                name=member.report.name,
                host=member.host,
                port=member.report.port,
                profile=member.report.profile,
            )
            for member in self._membership.alive()
        ]
