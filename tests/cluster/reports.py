from __future__ import annotations

from typing import Any

from edged.cluster.messages import HeartbeatReport
from edged.planning.profile import DeviceProfile

RUN = "0123456789abcdef"


def report(run: str = RUN, memory: int = 2**30, **changes: Any) -> HeartbeatReport:
    profile = DeviceProfile(
        device="claimed",
        name="pi",
        memory_budget=memory,
        disk_free=2**40,
        threads=4,
        bandwidth=1e10,
        flops=1e11,
    )
    values = {"run": run, "name": "pi", "version": "0.1.0", "port": 4242, "profile": profile, **changes}
    return HeartbeatReport(**values)
