"""Devices that are left out of plans for a while, and why."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

FAILED_S = 30.0  # for a device that could not take part, or did not answer
STRIKES = 3  # offences within STRIKES_S after which a device is taken for faulty or hostile
STRIKES_S = 300.0
OFFENDER_S = 600.0
STALLED_S = 600.0  # for one that answers and does not get on: each try with it costs minutes


class Shunned:
    """Any thread. A device comes back when its time is over, or once it reports again if it merely failed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failed: dict[str, tuple[float, str]] = {}  # device -> (until, why)
        self._offenders: dict[str, tuple[float, str]] = {}
        self._strikes: dict[str, deque[float]] = {}

    def leave_out(self, device: str, why: str, seconds: float = FAILED_S) -> None:
        with self._lock:
            self._failed[device] = (self._clock() + seconds, why)

    def accuse(self, device: str, why: str) -> None:
        """It broke the rules of the ring; a fault may do that once, so it takes several to be left out."""
        now = self._clock()
        with self._lock:
            strikes = self._strikes.setdefault(device, deque(maxlen=STRIKES))
            strikes.append(now)
            if len(strikes) == STRIKES and strikes[0] > now - STRIKES_S:
                self._offenders[device] = (now + OFFENDER_S, why)

    def pardon(self, device: str) -> None:
        """It reports again after a failure; offences are not forgiven."""
        with self._lock:
            self._failed.pop(device, None)

    def reasons(self) -> dict[str, str]:
        """Who is left out now, and why."""
        now = self._clock()
        with self._lock:
            self._failed = {device: entry for device, entry in self._failed.items() if entry[0] > now}
            self._offenders = {device: entry for device, entry in self._offenders.items() if entry[0] > now}
            return {device: why for device, (_, why) in (self._failed | self._offenders).items()}
