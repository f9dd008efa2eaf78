"""Which cluster this device belongs to, settled once at the start: kept, joined or founded."""

from __future__ import annotations

from collections.abc import Callable

from edged.cluster import authority, identity
from edged.cluster.address_book import Address, AddressBook
from edged.cluster.discovery import find_founder
from edged.cluster.identity import Identity
from edged.cluster.join import join
from edged.cluster.token import parse
from edged.errors import ClusterError
from edged.settings import HostPort, Settings

FIND_S = 20.0  # a daemon that starts at the same time announces itself within a few seconds


def settle(settings: Settings, say: Callable[[str], None]) -> Identity:
    """The identity to run with. Raises ClusterError, JoinRefusedError, PeerLostError, SettingsError."""
    own = identity.load(settings.home)
    if settings.join is None:
        if own is None:
            own = identity.found_cluster(settings.home, settings.name)
            say(f"founded the cluster {own.cluster}; for each other device run `edged token` here")
    else:
        token = parse(settings.join)
        if own is None:
            own = _join(settings, settings.join, authority.short(token.fingerprint), say)
        elif own.fingerprint != token.fingerprint:
            raise ClusterError(
                f"this device belongs to the cluster {own.cluster}, and the token is for "
                f"{authority.short(token.fingerprint)}; to change clusters use another --home"
            )
        else:
            say(f"already in the cluster {own.cluster}; the token was not needed")
    if own.name != settings.name:
        identity.rename(settings.home, settings.name)
        own = identity.load(settings.home) or own
    return own


def coordinator_address(settings: Settings) -> AddressBook:
    """Where the founder may be reached, as far as this device knows."""
    given = Address(settings.peer.host, settings.peer.port) if settings.peer is not None else None
    return AddressBook(settings.home / "identity" / "coordinator", given)


def _join(settings: Settings, token: str, cluster: str, say: Callable[[str], None]) -> Identity:
    if settings.peer is not None:
        founder = settings.peer
    else:
        say(f"looking for the cluster {cluster} in this network")
        peer = find_founder(cluster, FIND_S)
        founder = HostPort(peer.hosts[0], peer.port)
    own = join(settings.home, token, founder.host, founder.port, settings.name)
    coordinator_address(settings).worked(Address(founder.host, founder.port))
    say(f"joined the cluster {own.cluster} at {founder}")
    return own
