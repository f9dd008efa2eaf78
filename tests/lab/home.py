"""The emulated home: devices on one switch, gone without trace when the test ends."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.cable import Delay
from tests.lab.device import Device
from tests.lab.namespace import Namespace
from tests.lab.shell import LabError, LabUnavailableError
from tests.lab.sweep import lab_name, sweep

NETWORK = "10.77.0"
_numbers = itertools.count(1)


class Home:
    """A switch (a bridge in a namespace of its own) that devices are plugged into.

    with Home() as home:
        nuc = home.device("nuc", cores=(0,), memory="1G", link="1gbit")

    Nothing of it is seen in the machine's own network. LabUnavailableError where that cannot be had.
    """

    def __init__(self) -> None:
        if os.geteuid() != 0:
            raise LabUnavailableError("an emulated home needs root")
        sweep()
        self.name = lab_name(os.getpid(), next(_numbers))
        self.devices: list[Device] = []
        self.root = Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        try:
            self.switch = Namespace(f"{self.name}-switch")
        except LabError as error:
            shutil.rmtree(self.root)
            raise LabUnavailableError(f"no network namespace can be made here: {error}") from None
        try:
            # Snooping would need a querier; without one, multicast would reach nobody.
            self.switch.ip("link", "add", "switch", "type", "bridge", "mcast_snooping", "0")
            self.switch.ip("addr", "add", f"{NETWORK}.1/24", "dev", "switch")
            self.switch.ip("link", "set", "dev", "switch", "up")
        except BaseException:
            self.close()
            raise

    def device(
        self,
        name: str,
        *,
        cores: Sequence[int] = (),
        memory: str | None = None,
        link: str | None = None,
        delay: Delay | None = None,
        disk: str | None = None,
        disk_rate: str | None = None,
    ) -> Device:
        """Plugs in a device.

        cores: processors it may use.  link: a rate such as 100mbit, and `delay` how long its cable is.
        memory, disk, disk_rate: sizes such as 512M. `memory` is all that its programs may hold, page cache
        included; `disk` a file system of that size, in memory, under its EDGED_HOME; `disk_rate` what its
        programs may read from the disk per second.
        """
        device = Device(
            name,
            self.root / name,
            lab=self.name,
            switch=self.switch,
            address=f"{NETWORK}.{10 + len(self.devices)}",
            cores=cores,
            memory=memory,
            link=link,
            delay=delay,
            disk=disk,
            disk_rate=disk_rate,
        )
        self.devices.append(device)
        return device

    def logs(self) -> str:
        """The end of every log, for a failing test's report."""
        parts = []
        for log in sorted(self.root.glob("*/*.log")):
            lines = log.read_text(errors="replace").splitlines()[-40:]
            parts.append(f"--- {log.parent.name}/{log.name}\n" + "\n".join(lines))
        return "\n".join(parts)

    def close(self) -> None:
        """Turns everything off and removes it; every step is taken even if one before it fails."""
        problems: list[Exception] = []
        for device in self.devices:
            try:
                device.close()
            except LabError as error:
                problems.append(error)
        self.devices.clear()
        self.switch.close()
        shutil.rmtree(self.root, ignore_errors=True)
        if problems:
            raise problems[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
