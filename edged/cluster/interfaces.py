"""Which of this machine's network addresses mDNS is to use."""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import dataclass

import ifaddr
import psutil

MDNS_GROUP = "224.0.0.251"

Ip = ipaddress.IPv4Address | ipaddress.IPv6Address
Net = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Interfaces:
    """`multicast`: IPv4 addresses to speak mDNS on. `announced`: where this machine can be reached."""

    multicast: tuple[str, ...]
    announced: tuple[str, ...]
    networks: tuple[Net, ...]

    def nearest_first(self, hosts: list[str]) -> tuple[str, ...]:
        """Another machine's addresses as to be tried: in a network of ours first, IPv4 before IPv6."""

        def far(host: str) -> tuple[bool, int]:
            address = ipaddress.ip_address(host)
            return not any(address in network for network in self.networks), address.version

        return tuple(sorted(dict.fromkeys(hosts), key=far))


def interfaces() -> Interfaces:
    """What is there now. Without any network: the loopback, so that daemons of one machine still meet."""
    found: list[tuple[Ip, Net]] = []
    state = psutil.net_if_stats()
    for adapter in ifaddr.get_adapters():
        if adapter.name in state and not state[adapter.name].isup:
            continue  # it keeps its address when the cable is pulled
        for entry in adapter.ips:
            text = entry.ip if isinstance(entry.ip, str) else entry.ip[0]
            address = ipaddress.ip_address(text)
            found.append((address, ipaddress.ip_network(f"{text}/{entry.network_prefix}", strict=False)))
    outside = [pair for pair in found if not pair[0].is_loopback and _has_no_scope(pair[0])]
    loopback = [pair for pair in found if pair[0].is_loopback and pair[0].version == 4]
    multicast = _multicast(outside)
    chosen = outside if multicast else loopback
    return Interfaces(
        multicast=multicast or _multicast(chosen),
        announced=tuple(sorted({str(address) for address, _ in chosen})),
        networks=tuple(network for _, network in chosen),
    )


def _has_no_scope(address: Ip) -> bool:
    """IPv6 link-local addresses only mean something beside an interface's name, which differs by machine."""
    return address.version == 4 or not address.is_link_local


def _multicast(pairs: list[tuple[Ip, Net]]) -> tuple[str, ...]:
    return tuple(
        sorted(str(address) for address, _ in pairs if address.version == 4 and _joins_group(str(address)))
    )


def _joins_group(address: str) -> bool:
    """Some tunnels cannot do multicast and refuse; one of them must not stop the others."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("4s4s", socket.inet_aton(MDNS_GROUP), socket.inet_aton(address))
        try:
            probe.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
        except OSError:
            return False
    return True
