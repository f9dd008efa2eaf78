"""Membership as the coordinator plans with it."""

from __future__ import annotations

from edged.cluster.membership import Membership
from edged.cluster.roll_call import Peer

LAST_EPOCH = 2**48  # no cluster gets there; a member that says so would leave no number for the next


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

    def last_epoch(self) -> int:
        """The newest that any member has heard of: a coordinator that restarts goes on from it."""
        epochs = (member.report.epoch for member in self._membership.members())
        return max((epoch for epoch in epochs if epoch < LAST_EPOCH), default=0)
