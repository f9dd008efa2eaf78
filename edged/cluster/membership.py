"""Who is in the cluster now, as the coordinator knows it from heartbeats.

alive   reported within the last SILENT_AFTER_S seconds
silent  did not: taken for failed until it reports again
left    said goodbye
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Literal, Self

from edged.cluster.messages import HeartbeatReport
from edged.rpc.channel import shown
from edged.rpc.messages import MemberStatus

log = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
SILENT_AFTER_S = 5.0  # a few lost heartbeats and a slow garbage collection are no failure

MemberState = Literal["alive", "silent", "left"]


@dataclass(frozen=True, slots=True)
class Member:
    """Another device of the cluster; `last_seen` is on the table's clock."""

    device: str
    host: str  # IP address its heartbeats come from
    report: HeartbeatReport
    state: MemberState
    last_seen: float

    @property
    def address(self) -> str:
        return shown(self.host, self.report.port)

    def status(self, now: float) -> MemberStatus:
        return MemberStatus(
            device=self.device,
            name=self.report.name,
            address=self.address,
            state=self.state,
            version=self.report.version,
            memory_budget=self.report.profile.memory_budget,
            last_seen_s=max(0.0, now - self.last_seen),
        )


@dataclass(frozen=True, slots=True)
class MemberEvent:
    """joined: is there now, new or back. left: said goodbye. failed: fell silent, or restarted without a
    goodbye. changed: reports something else that matters to a plan."""

    kind: Literal["joined", "left", "failed", "changed"]
    member: Member


class MemberTable:
    """The state machine alone: no thread, no clock but the one given. Every change returns its events."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._members: dict[str, Member] = {}

    def heartbeat(self, device: str, host: str, report: HeartbeatReport) -> tuple[MemberEvent, ...]:
        own_profile = report.profile.model_copy(
            update={"device": device}
        )  # the certificate decides who it is
        report = report.model_copy(update={"profile": own_profile})
        now = Member(device, host, report, "alive", self._clock())
        with self._lock:
            before = self._members.get(device)
            restarted = before is not None and before.report.run != report.run
            if before is not None and before.state == "left" and not restarted:
                return ()  # a heartbeat that the goodbye overtook
            self._members[device] = now
        if before is None or before.state == "left":
            return (MemberEvent("joined", now),)
        if before.state == "silent":
            return (MemberEvent("joined", now),)
        if restarted:
            return (MemberEvent("failed", replace(before, state="silent")), MemberEvent("joined", now))
        return (MemberEvent("changed", now),) if _matters(before, now) else ()

    def leave(self, device: str, run: str) -> tuple[MemberEvent, ...]:
        with self._lock:
            before = self._members.get(device)
            if before is None or before.state == "left" or before.report.run != run:
                return ()
            gone = self._members[device] = replace(before, state="left")
        return (MemberEvent("left", gone),)

    def sweep(self) -> tuple[MemberEvent, ...]:
        """Marks those who fell silent."""
        events = []
        with self._lock:
            oldest = self._clock() - SILENT_AFTER_S
            for device, member in self._members.items():
                if member.state == "alive" and member.last_seen <= oldest:
                    self._members[device] = replace(member, state="silent")
                    events.append(MemberEvent("failed", self._members[device]))
        return tuple(events)

    def until_next_sweep(self) -> float | None:
        """Seconds until somebody could fall silent; None while nobody is there."""
        with self._lock:
            seen = [member.last_seen for member in self._members.values() if member.state == "alive"]
            return max(0.0, min(seen) + SILENT_AFTER_S - self._clock()) if seen else None

    def members(self) -> tuple[Member, ...]:
        """All that ever reported, in the order of their first report."""
        with self._lock:
            return tuple(self._members.values())

    def statuses(self) -> tuple[MemberStatus, ...]:
        now = self._clock()
        return tuple(member.status(now) for member in self.members())


class Membership:
    """A MemberTable that watches the clock and tells `listener` of every event, in order, on its own thread.

    A listener may take its time: heartbeats are answered meanwhile.
    """

    def __init__(self, listener: Callable[[MemberEvent], None], table: MemberTable | None = None) -> None:
        self._table = table or MemberTable()
        self._listener = listener
        self._events: SimpleQueue[MemberEvent | None] = SimpleQueue()  # None: look at the clock, or close
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edged-membership", daemon=False)
        self._thread.start()

    def heartbeat(self, device: str, host: str, report: HeartbeatReport) -> None:
        self._tell(self._table.heartbeat(device, host, report))

    def leave(self, device: str, run: str) -> None:
        self._tell(self._table.leave(device, run))

    def members(self) -> tuple[Member, ...]:
        return self._table.members()

    def alive(self) -> tuple[Member, ...]:
        return tuple(member for member in self._table.members() if member.state == "alive")

    def statuses(self) -> tuple[MemberStatus, ...]:
        """For people and for ClusterView; this device is not among them."""
        return self._table.statuses()

    def close(self) -> None:
        """Events that wait are still delivered. Idempotent."""
        self._closing.set()
        self._events.put(None)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tell(self, events: tuple[MemberEvent, ...]) -> None:
        for event in events:
            self._events.put(event)

    def _run(self) -> None:
        while True:
            try:
                event = self._events.get(timeout=self._table.until_next_sweep())
            except Empty:
                event = None
            if event is not None:
                self._deliver(event)
            elif self._closing.is_set():
                return
            self._tell(self._table.sweep())

    def _deliver(self, event: MemberEvent) -> None:
        log.info("%s (%s) %s", event.member.report.name, event.member.device, event.kind)
        try:
            self._listener(event)
        except Exception:
            log.exception("nobody could handle that %s %s", event.member.device, event.kind)


def _matters(before: Member, now: Member) -> bool:
    """Free memory and disk change with every heartbeat; a plan need not be made anew for that."""
    return (before.host, _lasting(before.report)) != (now.host, _lasting(now.report))


def _lasting(report: HeartbeatReport) -> HeartbeatReport:
    return report.model_copy(update={"profile": report.profile.lasting})
