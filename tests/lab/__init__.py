"""A home in one machine: daemons in network namespaces on a switch, each with its own cores, memory and link.

with Home() as home:
    nuc = home.device("nuc", cores=(0,), memory="1G", link="1gbit")
    daemon = nuc.start_daemon()
    daemon.wait_started()
    nuc.unplug()

Needs root and iproute2; `LabUnavailableError` says what is missing.
"""

from __future__ import annotations

from tests.lab.cable import Delay
from tests.lab.capture import Capture
from tests.lab.daemon import Daemon
from tests.lab.device import Device
from tests.lab.home import Home
from tests.lab.place import Place, edged_command
from tests.lab.process import CapturedProcess
from tests.lab.shell import LabError, LabTimeoutError, LabUnavailableError
from tests.lab.usage import Usage, usage_of

__all__ = [
    "Capture",
    "CapturedProcess",
    "Daemon",
    "Delay",
    "Device",
    "Home",
    "LabError",
    "LabTimeoutError",
    "LabUnavailableError",
    "Place",
    "Usage",
    "edged_command",
    "usage_of",
]
