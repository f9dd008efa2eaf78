"""One device of the emulated home: a place with a network namespace, a cable, and maybe a memory limit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.lab.memory import MemoryGroup, parse_size
from tests.lab.namespace import Namespace, pids_inside
from tests.lab.place import Place
from tests.lab.shell import LabError, LabUnavailableError, attempt, sh

INTERFACE = "eth0"
BURST_S = 0.004  # a shaper must pass at least what arrives between two kernel ticks


class Device(Place):
    """Made by `Home.device`. `address` is its IPv4 address on the bridge."""

    def __init__(
        self,
        name: str,
        root: Path,
        *,
        lab: str,
        switch: Namespace,
        address: str,
        cores: Sequence[int],
        memory: str | None,
        link: str | None,
        disk: str | None,
    ) -> None:
        super().__init__(name, root, cores)
        self.address = address
        self._port = f"to-{name}"  # an interface name: at most 15 characters
        self.memory: MemoryGroup | None = None
        self._switch = switch
        self._disk = False
        self.namespace = Namespace(f"{lab}-{name}")
        try:
            self._plug_into_switch()
            if link is not None:
                self.shape(link)
            if memory is not None:
                self.memory = MemoryGroup(f"{lab}-{name}", parse_size(memory))
            if disk is not None:
                sh(
                    "mount",
                    "-t",
                    "tmpfs",
                    "-o",
                    f"size={parse_size(disk)},mode=0700",
                    "tmpfs",
                    str(self.home),
                )
                self._disk = True
        except BaseException:
            self.close()
            raise

    def _plug_into_switch(self) -> None:
        """A veth pair is the cable: `eth0` here, the port `to-NAME` on the switch."""
        inside, switch = self.namespace, self._switch
        inside.ip("link", "add", INTERFACE, "type", "veth", "peer", "name", self._port, "netns", switch.name)
        switch.ip("link", "set", "dev", self._port, "master", "switch", "up")
        inside.ip("addr", "add", f"{self.address}/24", "dev", INTERFACE)
        inside.ip("link", "set", "dev", INTERFACE, "up")
        inside.ip("route", "add", "default", "via", f"{self.address.rsplit('.', 1)[0]}.1")
        inside.ip("route", "add", "224.0.0.0/4", "dev", INTERFACE)

    @property
    def prefix(self) -> tuple[str, ...]:
        group = self.memory.prefix if self.memory is not None else ()
        return (*group, *self.namespace.prefix, *super().prefix)

    def shape(self, rate: str) -> None:
        """Limits the cable to `rate` (as tc writes it: 100mbit, 1gbit) in both directions."""
        burst = max(32_000, int(_bits_per_second(rate) / 8 * BURST_S))
        tbf = ("root", "tbf", "rate", rate, "burst", str(burst), "latency", "50ms")
        for namespace, interface in ((self.namespace, INTERFACE), (self._switch, self._port)):
            try:
                sh("tc", "-n", namespace.name, "qdisc", "replace", "dev", interface, *tbf)
            except LabError as error:
                raise LabUnavailableError(f"links cannot be shaped here: {error}") from None

    def unplug(self) -> None:
        """Pulls the cable out: no carrier, every packet is lost, no connection is told."""
        self._switch.ip("link", "set", "dev", self._port, "down")

    def plug(self) -> None:
        self._switch.ip("link", "set", "dev", self._port, "up")

    def processes(self) -> list[int]:
        """Process ids of everything that runs on the device."""
        return pids_inside(self.namespace.name)

    def close(self) -> None:
        """Turns the device off: its processes are killed, its namespace, limit and disk removed."""
        super().close()
        self.namespace.close()
        if self.memory is not None:
            self.memory.close()
        if self._disk:
            attempt("umount", str(self.home))
            self._disk = False


def _bits_per_second(rate: str) -> float:
    for suffix, factor in (("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3)):
        if rate.lower().endswith(suffix):
            return float(rate[: -len(suffix)]) * factor
    raise LabError(f"{rate!r} is not a rate such as 100mbit or 1gbit")
