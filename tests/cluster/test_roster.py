from __future__ import annotations

from edged.cluster.membership import Membership
from edged.cluster.roster import MembershipRoster
from tests.cluster.reports import report


def test_the_next_epoch_follows_the_last_that_anybody_has_heard_of() -> None:
    with Membership(lambda _: None) as membership:
        roster = MembershipRoster(membership)
        assert roster.last_epoch() == 0
        membership.heartbeat("a", "10.0.0.2", report(epoch=4))
        membership.heartbeat("b", "10.0.0.3", report(epoch=7))
        membership.leave("b", report().run)
        assert roster.last_epoch() == 7
        assert [peer.device for peer in roster.alive()] == ["a"]


def test_a_member_cannot_use_up_the_numbers() -> None:
    with Membership(lambda _: None) as membership:
        membership.heartbeat("a", "10.0.0.2", report(epoch=4))
        membership.heartbeat("b", "10.0.0.3", report(epoch=2**64 - 1))
        assert MembershipRoster(membership).last_epoch() == 4
