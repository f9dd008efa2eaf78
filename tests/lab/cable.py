"""The cable between a device and the switch: limited in rate, pulled out, or long."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.lab import relay
from tests.lab.namespace import Namespace
from tests.lab.process import CapturedProcess
from tests.lab.shell import LabError, LabUnavailableError, sh

INTERFACE = "eth0"
NEAR, FAR = "near", "far"
BURST_S = 0.004  # a shaper must pass at least what arrives between two kernel ticks


@dataclass(frozen=True, slots=True)
class Delay:
    """Of every frame, each way: `ms`, and evenly distributed up to `jitter_ms` more."""

    ms: float
    jitter_ms: float = 0.0


class Cable:
    """A veth pair: `eth0` in the device, the port `to-NAME` on the switch.

    With a delay there are two pairs, and a relay in a namespace between them passes the frames on.
    """

    def __init__(
        self, name: str, inside: Namespace, switch: Namespace, delay: Delay | None, log: Path
    ) -> None:
        self._inside = inside
        self._switch = switch
        self._port = f"to-{name}"  # an interface name: at most 15 characters
        self._middle: Namespace | None = None
        self._relay: CapturedProcess | None = None
        if delay is None:
            _join(inside, INTERFACE, switch, self._port)
        else:
            try:
                self._lengthen(delay, log)
            except BaseException:
                self.close()
                raise
        switch.ip("link", "set", "dev", self._port, "master", "switch", "up")

    def _lengthen(self, delay: Delay, log: Path) -> None:
        middle = self._middle = Namespace(f"{self._inside.name}-cable")
        middle.enter(_without_ipv6)
        _join(self._inside, INTERFACE, middle, NEAR)
        _join(middle, FAR, self._switch, self._port)
        for end in (NEAR, FAR):
            middle.ip("link", "set", "dev", end, "up")
        command = (*middle.prefix, sys.executable, "-P", relay.__file__, NEAR, FAR)
        times = (str(delay.ms), str(delay.jitter_ms))
        self._relay = CapturedProcess((*command, *times), dict(os.environ), log, f"{self._port}/relay")
        self._relay.wait_for_line("forwarding", timeout=20)

    def shape(self, rate: str) -> None:
        """Limits both directions to `rate` (as tc writes it: 100mbit, 1gbit)."""
        burst = max(32_000, int(_bits_per_second(rate) / 8 * BURST_S))
        tbf = ("root", "tbf", "rate", rate, "burst", str(burst), "latency", "50ms")
        for namespace, interface in ((self._inside, INTERFACE), (self._switch, self._port)):
            try:
                sh("tc", "-n", namespace.name, "qdisc", "replace", "dev", interface, *tbf)
            except LabError as error:
                raise LabUnavailableError(f"links cannot be shaped here: {error}") from None

    def unplug(self) -> None:
        """Pulls it out: no carrier, every packet is lost, no connection is told."""
        self._set("down")

    def plug(self) -> None:
        self._set("up")

    def _set(self, state: str) -> None:
        self._switch.ip("link", "set", "dev", self._port, state)
        if self._middle is not None:
            self._middle.ip("link", "set", "dev", NEAR, state)

    def close(self) -> None:
        """Ends the relay; the interfaces go with the namespaces."""
        if self._relay is not None:
            self._relay.close()
        if self._middle is not None:
            self._middle.close()


def _join(one: Namespace, name: str, other: Namespace, peer: str) -> None:
    one.ip("link", "add", name, "type", "veth", "peer", "name", peer, "netns", other.name)


def _without_ipv6() -> None:
    """The relay's own interfaces should say nothing on the cable."""
    with contextlib.suppress(FileNotFoundError):  # a kernel without it
        Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
        Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")


def _bits_per_second(rate: str) -> float:
    for suffix, factor in (("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3)):
        if rate.lower().endswith(suffix):
            return float(rate[: -len(suffix)]) * factor
    raise LabError(f"{rate!r} is not a rate such as 100mbit or 1gbit")
