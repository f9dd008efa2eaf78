"""Memory that changed for good: a device's budget is another only when it has stayed so for a while."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

LASTING_S = 60.0
ANOTHER = 0.15  # share by which a budget must differ; free memory goes up and down by less all the time
LITTLE = 256 * 2**20  # bytes that never count


def tolerance(budget: int) -> int:
    """Bytes by which a budget may differ, for however long, without being another."""
    return max(int(ANOTHER * budget), LITTLE)


@dataclass(slots=True)
class _Budget:
    steady: int  # bytes
    since: float | None = None  # when it began to be another


class SteadyBudgets:
    """The budgets of all devices in bytes, as they are for longer than a moment."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._budgets: dict[str, _Budget] = {}

    def see(self, budgets: Mapping[str, int]) -> tuple[dict[str, int], float | None]:
        """What they are for good, and in how many seconds to look again (None: nothing is changing)."""
        now = self._clock()
        self._budgets = {device: one for device, one in self._budgets.items() if device in budgets}
        waits = []
        for device, bytes_now in budgets.items():
            known = self._budgets.setdefault(device, _Budget(bytes_now))
            if abs(bytes_now - known.steady) < tolerance(known.steady):
                known.since = None
                continue
            known.since = now if known.since is None else known.since
            if now - known.since >= LASTING_S:
                self._budgets[device] = _Budget(bytes_now)
            else:
                waits.append(known.since + LASTING_S - now)
        return {device: one.steady for device, one in self._budgets.items()}, min(waits, default=None)
