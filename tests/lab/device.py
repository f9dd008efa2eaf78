"""One device of the emulated home: a place with a network namespace, a cable, and maybe limits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.lab.cable import INTERFACE, Cable, Delay
from tests.lab.disk import DiskGroup
from tests.lab.memory import MemoryGroup, parse_size
from tests.lab.namespace import Namespace, pids_inside
from tests.lab.place import Place
from tests.lab.shell import attempt, sh


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
        delay: Delay | None,
        disk: str | None,
        disk_rate: str | None,
    ) -> None:
        super().__init__(name, root, cores)
        self.address = address
        self.memory: MemoryGroup | None = None
        self.disk: DiskGroup | None = None
        self._cable: Cable | None = None
        self._small_disk = False
        self.namespace = Namespace(f"{lab}-{name}")
        try:
            self._cable = Cable(name, self.namespace, switch, delay, root / "relay.log")
            self._set_address()
            if link is not None:
                self.shape(link)
            if memory is not None:
                self.memory = MemoryGroup(f"{lab}-{name}", parse_size(memory))
            if disk_rate is not None:
                self.disk = DiskGroup(f"{lab}-{name}", root, parse_size(disk_rate))
            if disk is not None:
                options = f"size={parse_size(disk)},mode=0700"
                sh("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.home))
                self._small_disk = True
        except BaseException:
            self.close()
            raise

    def _set_address(self) -> None:
        inside = self.namespace
        inside.ip("addr", "add", f"{self.address}/24", "dev", INTERFACE)
        inside.ip("link", "set", "dev", INTERFACE, "up")
        inside.ip("route", "add", "default", "via", f"{self.address.rsplit('.', 1)[0]}.1")
        inside.ip("route", "add", "224.0.0.0/4", "dev", INTERFACE)

    @property
    def prefix(self) -> tuple[str, ...]:
        groups = [group.prefix for group in (self.memory, self.disk) if group is not None]
        return (*sum(groups, ()), *self.namespace.prefix, *super().prefix)

    @property
    def cable(self) -> Cable:
        assert self._cable is not None
        return self._cable

    def shape(self, rate: str) -> None:
        """Limits the cable to `rate` (as tc writes it: 100mbit, 1gbit) in both directions."""
        self.cable.shape(rate)

    def unplug(self) -> None:
        """Pulls the cable out: no carrier, every packet is lost, no connection is told."""
        self.cable.unplug()

    def plug(self) -> None:
        self.cable.plug()

    def processes(self) -> list[int]:
        """Process ids of everything that runs on the device."""
        return pids_inside(self.namespace.name)

    def close(self) -> None:
        """Turns the device off: its processes are killed, its namespace, limits and disk removed."""
        super().close()
        self.namespace.close()
        if self._cable is not None:
            self._cable.close()
        for group in (self.memory, self.disk):
            if group is not None:
                group.close()
        if self._small_disk:
            attempt("umount", str(self.home))
            self._small_disk = False
