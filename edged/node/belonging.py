"""Which cluster this device belongs to, settled once at the start: kept, joined or founded."""

from __future__ import annotations

from collections.abc import Callable

from edged.cluster import authority, identity
from edged.cluster.address_book import Address, AddressBook
from edged.cluster.discovery import find_founder
from edged.cluster.identity import Identity
from edged.cluster.join import join
from edged.cluster.token import parse
from edged.errors import ClusterError, PeerLostError
from edged.settings import Settings

FIND_S = 20.0  # a daemon that starts at the same time announces itself within a few seconds


def leads(settings: Settings) -> bool:
    """Whether `settle` will make or find a founder, if it succeeds. Raises ClusterError."""
    own = identity.load(settings.home)
    return settings.join is None if own is None else own.is_founder


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
                f"{authority.short(token.fingerprint)}; {_how_to_change(own)}"
            )
        else:
            say(f"already in the cluster {own.cluster}; the token was not needed")
    if own.name != settings.name:
        identity.rename(settings.home, settings.name)
        own = identity.load(settings.home) or own
    return own


def _how_to_change(own: Identity) -> str:
    folder = own.home / "identity"
    if not own.is_founder:
        return (
            f"to change clusters remove {folder} (it then leaves its cluster for good), or use another --home"
        )
    if not (folder / "admitted").exists():
        return (
            f"no other device has joined its own cluster, so remove {folder} and start it again with --join"
        )
    return (
        f"other devices have joined its own cluster and would be left without a founder; use another --home, "
        f"or give that cluster up: remove {folder} and start this device again with --join"
    )


def coordinator_address(settings: Settings) -> AddressBook:
    """Where the founder may be reached, as far as this device knows."""
    given = Address(settings.peer.host, settings.peer.port) if settings.peer is not None else None
    return AddressBook(settings.home / "identity" / "coordinator", given)


def _join(settings: Settings, token: str, cluster: str, say: Callable[[str], None]) -> Identity:
    unreachable: PeerLostError | None = None
    for address in _founder_addresses(settings, cluster, say):
        try:
            own = join(settings.home, token, address.host, address.port, settings.name)
        except PeerLostError as error:
            unreachable = unreachable or error
            continue
        coordinator_address(settings).worked(address)
        say(f"joined the cluster {own.cluster} at {address}")
        return own
    assert unreachable is not None
    raise unreachable


def _founder_addresses(settings: Settings, cluster: str, say: Callable[[str], None]) -> tuple[Address, ...]:
    """Never empty; the likeliest first."""
    if settings.peer is not None:
        return (Address(settings.peer.host, settings.peer.port),)
    say(f"looking for the cluster {cluster} in this network")
    peer = find_founder(cluster, FIND_S)
    return tuple(Address(host, peer.port) for host in peer.hosts)
