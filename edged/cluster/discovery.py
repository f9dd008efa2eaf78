"""Finding the devices of a home by mDNS, service `_edged._tcp`.

What is announced is presence only: device id, short cluster fingerprint, protocol version, role and port.
Nothing that is heard is believed: it says where to knock, and mutual TLS says who opens.
"""

from __future__ import annotations

import ipaddress
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

from zeroconf import Error as ZeroconfError
from zeroconf import IPVersion, ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

from edged import PROTOCOL_VERSION
from edged.cluster.authority import DEVICE_ID
from edged.cluster.interfaces import Interfaces, interfaces
from edged.errors import PeerLostError

log = logging.getLogger(__name__)

SERVICE = "_edged._tcp.local."
LOOK_AGAIN_S = 5.0  # how often the machine's own addresses are compared (DHCP, a cable, a sleeping laptop)
RESOLVE_MS = 2000

Role = Literal["founder", "member"]


@dataclass(frozen=True, slots=True)
class Announcement:
    """What this device tells the network about itself."""

    device: str
    cluster: str  # short fingerprint
    role: Role
    port: int


@dataclass(frozen=True, slots=True)
class DiscoveredPeer:
    """What another device tells about itself; `hosts` are IP addresses, the nearest first."""

    device: str
    cluster: str
    role: Role
    port: int
    protocol: int
    hosts: tuple[str, ...]


class Discovery:
    """Announces this device (if told to) and browses for others, from construction until `close`.

    `found` is called for every other device, and again when its addresses or port change or it comes back, on
    threads of this object. Where the network does not
    allow mDNS it is logged once and tried again later: a daemon works without it, by --peer.
    """

    def __init__(self, announcement: Announcement | None, found: Callable[[DiscoveredPeer], None]) -> None:
        self._announcement = announcement
        self._found = found
        self._closing = threading.Event()
        self._told: dict[str, DiscoveredPeer] = {}
        self._on: Interfaces | None = None
        self._zeroconf: Zeroconf | None = None
        self._browser: ServiceBrowser | None = None
        self._complained = False
        self._thread = threading.Thread(target=self._run, name="edged-discovery", daemon=False)
        self._thread.start()

    def close(self) -> None:
        """Says goodbye to the network. Idempotent."""
        self._closing.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while True:
            try:
                now = interfaces()
            except OSError as error:  # no file descriptor is free just now: what is open may stay so
                log.warning("cannot look at the network's interfaces: %s", error)
            else:
                if now != self._on or self._zeroconf is None:
                    self._shut()
                    self._open(now)
            if self._closing.wait(LOOK_AGAIN_S):
                self._shut()
                return

    def _open(self, now: Interfaces) -> None:
        self._on = now
        try:
            if not now.multicast:
                raise OSError("no network interface takes part in multicast")
            self._zeroconf = Zeroconf(interfaces=list(now.multicast), ip_version=IPVersion.V4Only)
            if self._announcement is not None:
                # No probing for the name, which takes a second: device ids are random.
                self._zeroconf.register_service(
                    _service(self._announcement, now), cooperating_responders=True
                )
            self._browser = ServiceBrowser(self._zeroconf, SERVICE, handlers=[self._heard])
        except (OSError, ZeroconfError) as error:
            self._shut()
            if not self._complained:
                log.warning("devices cannot find each other by mDNS here (%s): use --peer HOST:PORT", error)
            self._complained = True
        else:
            self._complained = False
            log.debug("mDNS on %s", ", ".join(now.multicast))

    def _shut(self) -> None:
        if self._browser is not None:
            self._browser.cancel()
            self._browser = None
        if self._zeroconf is not None:
            self._zeroconf.unregister_all_services()  # the goodbye
            self._zeroconf.close()
            self._zeroconf = None

    def _heard(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        """On the browser's thread. zeroconf passes these by keyword."""
        try:
            device = name.removesuffix(f".{service_type}")
            if self._announcement is not None and device == self._announcement.device:
                return
            if state_change is ServiceStateChange.Removed:
                self._told.pop(device, None)
                return
            info = zeroconf.get_service_info(service_type, name, RESOLVE_MS)
            peer = _peer(device, info, self._on) if info is not None else None
            if peer is not None and self._told.get(device) != peer:
                self._told[device] = peer
                self._found(peer)
        except Exception:
            log.exception("an announcement could not be handled")


def find_founder(cluster: str, timeout_s: float) -> DiscoveredPeer:
    """The founder of the cluster with this short fingerprint. Raises PeerLostError if none is heard."""
    there = threading.Event()
    founders: list[DiscoveredPeer] = []

    def found(peer: DiscoveredPeer) -> None:
        if peer.cluster == cluster and peer.role == "founder":
            founders.append(peer)
            there.set()

    with Discovery(None, found):
        if not there.wait(timeout_s):
            raise PeerLostError(
                f"the founder of the cluster {cluster} is not heard in this network: is its daemon running? "
                "Where multicast is blocked, say where it is with --peer HOST:PORT"
            )
    return founders[-1]


def _service(announcement: Announcement, on: Interfaces) -> ServiceInfo:
    return ServiceInfo(
        SERVICE,
        f"{announcement.device}.{SERVICE}",
        port=announcement.port,
        addresses=[ipaddress.ip_address(address).packed for address in on.announced],
        server=f"edged-{announcement.device}.local.",
        properties={
            "cluster": announcement.cluster,
            "device": announcement.device,
            "protocol": str(PROTOCOL_VERSION),
            "role": announcement.role,
        },
    )


def _peer(device: str, info: ServiceInfo, on: Interfaces | None) -> DiscoveredPeer | None:
    """What a record says, or None where it is not one of ours: anybody can announce anything."""
    said = {key: value or "" for key, value in info.decoded_properties.items()}
    cluster, protocol, role = said.get("cluster", ""), said.get("protocol", ""), said.get("role", "")
    hosts = [address for address in info.parsed_addresses(IPVersion.All) if "%" not in address]
    if not DEVICE_ID.fullmatch(device) or said.get("device") != device or not DEVICE_ID.fullmatch(cluster):
        return None
    if not (protocol.isascii() and protocol.isdigit() and len(protocol) < 6) or not info.port or not hosts:
        return None
    if role not in ("founder", "member"):
        return None
    near = on.nearest_first(hosts) if on is not None else tuple(hosts)
    return DiscoveredPeer(
        device=device,
        cluster=cluster,
        role="founder" if role == "founder" else "member",
        port=info.port,
        protocol=int(protocol),
        hosts=near,
    )
