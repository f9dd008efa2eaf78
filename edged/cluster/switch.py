"""Carrying out a plan: every device of the ring prepares its windows, then the ring goes live."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from edged.cluster.assignment import Assignment
from edged.errors import EdgedError
from edged.rpc.messages import Progress


class RingMember(Protocol):
    """One device of the ring: this one (Worker) or another (MemberClient)."""

    def prepare(self, assignment: Assignment) -> Iterator[Progress]: ...
    def activate(self, epoch: int) -> None: ...
    def release(self, epoch: int) -> None: ...


def switch(
    assignment: Assignment, members: Mapping[str, RingMember], on_progress: Callable[[Progress], None]
) -> dict[str, EdgedError]:
    """Brings the assignment's epoch to life on `members` (by device id). The devices that failed, and why."""
    plan = assignment.plan
    with ThreadPoolExecutor(max_workers=len(members), thread_name_prefix="prepare") as pool:
        running = {
            device: pool.submit(_prepare, member, assignment, on_progress)
            for device, member in members.items()
        }
        failed = {device: error for device, future in running.items() if (error := future.result())}
    if failed:
        return failed
    for device in reversed(plan.devices):  # whoever receives is there before anyone sends
        try:
            members[device].activate(plan.epoch)
        except EdgedError as error:
            return {device: error}
    return {}


def _prepare(
    member: RingMember, assignment: Assignment, on_progress: Callable[[Progress], None]
) -> EdgedError | None:
    try:
        for step in member.prepare(assignment):
            on_progress(step)
    except EdgedError as error:
        return error
    return None
