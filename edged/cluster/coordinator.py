"""The coordinator: decides which model the ring holds and on which devices, and switches the ring over.

One thread does all of it, in one readable turn: look who is there, plan, and if the plan differs from the
ring that runs, carry it out under the next epoch. What happens elsewhere (a device came or went, a link
broke, somebody wants a model) only wakes that thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Literal, Protocol

from edged.cluster.assignment import Assignment, Endpoint, with_names
from edged.cluster.member_client import MemberClient
from edged.cluster.ring_planner import Company, RingPlanner
from edged.cluster.roll_call import Peer, RollCall
from edged.cluster.shunned import FAILED_S, STALLED_S, Shunned
from edged.cluster.switch import RingMember, switch
from edged.errors import (
    EdgedError,
    OverloadedError,
    PeerLostError,
    PlanError,
    RingBrokenError,
    StalledError,
)
from edged.planning.plan import LeftOut, Plan
from edged.planning.profile import DeviceProfile
from edged.rpc.messages import Progress
from edged.store.manifest import Manifest

log = logging.getLogger(__name__)

SETTLE_S = 0.5  # after a device came: others often come at the same time
RETRY_S = 5.0  # after a plan could not be made or carried out
LOOK_S = 30.0  # between looks at a ring that runs: memory and links change without anybody saying so

State = Literal["idle", "planning", "loading", "ready", "failed"]


class Roster(Protocol):
    """Who is there now, this device aside."""

    def alive(self) -> list[Peer]: ...


class Head(Protocol):
    """The serving side of this device: it takes a ring and answers requests with it."""

    @property
    def is_busy(self) -> bool: ...
    def attach(self, manifest: Manifest, plan: Plan) -> None: ...
    def detach(self) -> None: ...


@dataclass(frozen=True, slots=True)
class RingState:
    """What the ring is doing, for status and for those who wait."""

    state: State = "idle"
    problem: str = ""
    wanted: Manifest | None = None
    plan: Plan | None = None  # the plan that runs, or ran last
    epoch: int = 0


class Coordinator:
    """Runs on the device that founded the cluster. `start`, then `ensure` or `load` from any thread."""

    def __init__(
        self,
        *,
        profile: Callable[[], DeviceProfile],
        port: int,
        roster: Roster,
        local: RingMember,
        dial: Callable[[Peer], MemberClient],
        head: Head,
        planner: RingPlanner,
        last_epoch: Callable[[], int],
        say: Callable[[str], None] = lambda _: None,
        on_ready: Callable[[Manifest], None] = lambda _: None,
    ) -> None:
        """say: told in plain words what happens to the ring. on_ready: told which model runs now."""
        self._profile = profile
        self._port = port
        self._roster = roster
        self._local = local
        self._head = head
        self._planner = planner
        self._last_epoch = last_epoch
        self._say = say
        self._on_ready = on_ready
        self._turn = threading.Condition()
        self._state = RingState()
        self._due: float | None = None  # monotonic time of the next turn
        self._broken = False
        self._stalled = False  # no link broke, and nothing came round
        self._closing = False
        self._calls = RollCall(dial)
        self._shunned = Shunned()
        self._ran: Manifest | None = None  # the model of the last ring that ran
        self._problems: dict[str, str] = {}  # by model: why it could not be loaded
        self._holders: set[str] = set()  # devices that may hold windows of some epoch
        self._names: dict[str, str] = {}  # by device, of all that were in a plan
        self._company: Company | None = None  # who was there when the ring that runs was planned
        self._switch_s = 0.0  # that the last switch took
        self._watchers: set[SimpleQueue[Progress | None]] = set()
        self._thread = threading.Thread(target=self._run, name="coordinator")

    # ---- from any thread --------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def call_off(self) -> None:
        """The daemon stops: whoever waits is told, and other devices are no longer waited for. Never blocks.

        A preparation of this device itself is its worker's to call off.
        """
        with self._turn:
            self._closing = True
            self._turn.notify_all()
            for watcher in self._watchers:
                watcher.put(None)
        self._calls.call_off()

    def close(self) -> None:
        """Ends the thread; the ring goes down with the devices' own close."""
        self.call_off()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def state(self) -> RingState:
        return self._state

    def members_changed(self) -> None:
        """A device came, went, or is another than it was."""
        self._wake(SETTLE_S)

    def device_returned(self, device: str) -> None:
        """A device that had failed reports again: it deserves another try."""
        self._shunned.pardon(device)
        self._wake(SETTLE_S)

    def ring_broke(self, epoch: int, why: str, offender: str = "", stalled: bool = False) -> None:
        """A link of the ring went away (`offender` broke the rules, if one is named), or nothing came round.

        Ignored if it is not the ring that runs.
        """
        with self._turn:
            runs = self._state.state in ("loading", "ready")
            if self._closing or self._broken or not runs or epoch != self._state.epoch:
                return
            why = with_names(why, self._names)
            log.warning("the ring broke: %s", why)
            self._say(f"the ring broke: {why}")
            self._broken = True
            self._stalled = stalled
            if offender:
                self._shunned.accuse(offender, why)
            if self._state.state == "ready":
                self._state = replace(self._state, state="planning", problem=why)
        self._wake(0.0)

    def ensure(self, manifest: Manifest) -> None:
        """Returns when the ring runs `manifest`; raises whatever prevents it."""
        self._want(manifest)
        with self._turn:
            self._turn.wait_for(lambda: self._closing or self._is_settled_for(manifest))
            self._raise_unless_ready(manifest)

    def load(self, manifest: Manifest) -> Iterator[Progress]:
        """As `ensure`, telling what is being done meanwhile."""
        steps: SimpleQueue[Progress | None] = SimpleQueue()
        with self._turn:
            self._watchers.add(steps)
        try:
            self._want(manifest)
            while True:
                with self._turn:
                    settled = self._closing or self._is_settled_for(manifest)
                while not (settled and steps.empty()):
                    if (step := steps.get()) is not None:
                        yield step
                    elif not settled:
                        break  # the state changed: look again
                if settled:
                    break
            with self._turn:
                self._raise_unless_ready(manifest)
        finally:
            with self._turn:
                self._watchers.discard(steps)

    def _want(self, manifest: Manifest) -> None:
        with self._turn:
            self._problems.pop(manifest.id, None)
            wanted = self._state.wanted
            if wanted is not None and wanted.id == manifest.id:
                if self._state.state == "failed":
                    self._state = replace(self._state, state="planning")
                    self._wake(0.0)
                return
            if wanted is not None and self._head.is_busy:
                raise OverloadedError(
                    f"{wanted.name} is answering; {manifest.name} can be loaded when it is done"
                )
            self._state = replace(self._state, state="planning", problem="", wanted=manifest)
            self._wake(0.0)

    def _is_settled_for(self, manifest: Manifest) -> bool:
        state = self._state
        if state.wanted is None or state.wanted.id != manifest.id:
            return True  # somebody wanted another model since
        return state.state in ("ready", "failed")

    def _raise_unless_ready(self, manifest: Manifest) -> None:
        state = self._state
        if self._closing:
            raise EdgedError("the daemon is stopping")
        if (problem := self._problems.get(manifest.id)) is not None:
            raise PlanError(problem)
        if state.wanted is None or state.wanted.id != manifest.id:
            raise OverloadedError(f"another model was loaded instead of {manifest.name}")

    def _wake(self, delay: float) -> None:
        with self._turn:
            due = time.monotonic() + delay
            self._due = due if self._due is None else min(self._due, due)
            self._turn.notify_all()

    # ---- on the coordinator's own thread ----------------------------------------------------------------

    def _run(self) -> None:
        while self._wait_for_turn():
            manifest = self._state.wanted
            if manifest is None:
                continue
            try:
                self._take_turn(manifest)
            except Exception as error:
                if self._closing:
                    return  # its channels were closed under it
                if isinstance(error, EdgedError):
                    self._fail(manifest, error.message)
                    continue
                log.exception("the coordinator stumbled")
                self._fail(manifest, "an internal error; the daemon's log has the details")

    def _wait_for_turn(self) -> bool:
        with self._turn:
            while not self._closing:
                now = time.monotonic()
                if self._due is not None and self._due <= now:
                    self._due = None
                    return True
                self._turn.wait(None if self._due is None else self._due - now)
            return False

    def _fail(self, manifest: Manifest, problem: str) -> None:
        log.warning("no ring for %s: %s", manifest.name, problem)
        if self._problems.get(manifest.id) != problem:
            self._say(f"{manifest.name} cannot run: {problem}")
        self._head.detach()
        self._broken = False
        self._problems[manifest.id] = problem
        if self._ran is None or self._ran.id == manifest.id:
            self._conclude(manifest, "failed", problem=problem)
            self._wake(RETRY_S)
        else:  # it was merely asked for: back to the model that ran
            self._conclude(manifest, "planning", wanted=self._ran, problem="")
            self._wake(0.0)

    def _conclude(self, manifest: Manifest, state: State, **changes: object) -> None:
        """How the turn for `manifest` ended, unless somebody wanted another model since: its turn is due."""
        with self._turn:
            wanted = self._state.wanted
            if wanted is None or wanted.id != manifest.id:
                state, changes["problem"] = "planning", ""
                changes.pop("wanted", None)
            self._set(state=state, **changes)

    def _take_turn(self, manifest: Manifest) -> None:
        if self._broken:
            self._head.detach()
            if self._state.plan is not None:
                if self._stalled:
                    self._shun_the_stuck(self._state.plan)
                self._shun_the_silent(self._state.plan)
            self._stalled = False
        peers = self._present()
        if not self._runs_well(manifest, peers):
            self._carry_out(self._plan(manifest, peers), manifest, peers)
        if self._state.state == "ready" and self._state.plan is not None:
            self._release_others(self._state.plan)

    def _runs_well(self, manifest: Manifest, peers: dict[str, Peer]) -> bool:
        """Whether the ring stays. Free memory that goes up and down is no reason to disturb one that runs."""
        running = self._state.plan
        if self._broken or self._state.state != "ready" or running is None or running.model != manifest.id:
            return False
        profiles = _profiles(peers)
        company, look_again = self._planner.company(profiles)
        self._wake(min(LOOK_S, look_again or LOOK_S))
        if company == self._company:
            return True
        kept = self._planner.kept(running, manifest, profiles, self._switch_s)
        if kept is None:
            return False
        self._company = company
        self._set(plan=self._with_shunned(kept))
        return True

    def _present(self) -> dict[str, Peer]:
        shunned = self._shunned.reasons()
        return {peer.device: peer for peer in self._roster.alive() if peer.device not in shunned}

    def _shun_the_silent(self, plan: Plan) -> bool:
        """After a break: whoever does not answer at once is left out until it reports again. Whether any."""
        silent = self._calls.silent(self._others_in(plan))
        for peer in silent:
            self._shunned.leave_out(peer.device, f"{peer.name} does not answer")
        return bool(silent)

    def _shun_the_stuck(self, plan: Plan) -> None:
        """After the ring stood still: whoever still computes has done so all the time.

        Where nobody does, one of them loses frames, and it takes several times to leave all of them out.
        """
        others = self._others_in(plan)
        stuck = self._calls.computing(others)
        for peer in stuck:
            self._shunned.leave_out(peer.device, f"{peer.name} does not get on with its layers", STALLED_S)
        if not stuck:
            for peer in others:
                self._shunned.accuse(peer.device, "the ring stood still with it again and again")

    def _others_in(self, plan: Plan) -> list[Peer]:
        return [peer for device, peer in self._present().items() if device in plan.devices]

    def _plan(self, manifest: Manifest, peers: dict[str, Peer]) -> Plan:
        epoch = max(self._last_epoch(), self._state.epoch) + 1
        return self._with_shunned(self._planner.plan(manifest, _profiles(peers), epoch))

    def _with_shunned(self, plan: Plan) -> Plan:
        reasons = self._shunned.reasons()
        others = tuple(out for out in plan.left_out if out.device not in reasons)
        shunned = tuple(LeftOut(device=device, reason=why) for device, why in reasons.items())
        return plan.model_copy(update={"left_out": others + shunned})

    def _carry_out(self, plan: Plan, manifest: Manifest, peers: dict[str, Peer]) -> None:
        log.info("epoch %d: %s", plan.epoch, plan.describe())
        began = time.monotonic()
        self._set(state="loading", problem="", epoch=plan.epoch)
        self._names |= {peer.device: peer.name for peer in peers.values()}
        self._head.detach()
        self._broken = False
        with ExitStack() as clients:
            others = [device for device in plan.devices if device in peers]
            members: dict[str, RingMember] = {
                device: clients.enter_context(self._calls.client(peers[device])) for device in others
            }
            members[plan.head] = self._local
            self._holders.update(members)
            failed = switch(self._assignment(plan, manifest, peers), members, self._tell)
        if self._closing:
            return
        if failed:
            self._leave_out(failed, plan, peers)
            self._wake(0.0)
            return
        self._head.attach(manifest, plan)
        self._ran = manifest
        self._problems.pop(manifest.id, None)
        self._switch_s = time.monotonic() - began
        self._company, _ = self._planner.company(_profiles(peers))
        self._conclude(manifest, "ready", plan=plan)
        names = {plan.head: self._profile().name, **{device: peer.name for device, peer in peers.items()}}
        self._say(f"{manifest.name} runs: {plan.describe(names)}")
        if plan.note:
            self._say(f"{manifest.name}: {plan.note}")
        self._on_ready(manifest)
        self._wake(LOOK_S)
        if self._shunned.reasons():  # the ring runs without them; they get another chance later
            self._wake(FAILED_S)

    def _assignment(self, plan: Plan, manifest: Manifest, peers: dict[str, Peer]) -> Assignment:
        me = self._profile()
        return Assignment(
            plan=plan,
            manifest=manifest.pack(),
            endpoints=(
                Endpoint(device=me.device, name=me.name, host="", port=self._port),
                *(
                    Endpoint(device=peer.device, name=peer.name, host=peer.host, port=peer.port)
                    for peer in peers.values()
                ),
            ),
            sources=(plan.head, *peers),
        )

    def _leave_out(self, failed: dict[str, EdgedError], plan: Plan, peers: dict[str, Peer]) -> None:
        """Before the next try. Raises the head's own failure: without the head there is no ring."""
        for device, error in failed.items():
            name = peers[device].name if device in peers else "this device"
            line = f"{name} could not take part: {with_names(error.message, self._names)}"
            log.warning("%s", line)
            self._say(line)
        lost = any(isinstance(error, RingBrokenError | PeerLostError) for error in failed.values())
        if lost and self._shun_the_silent(plan):
            return  # whoever failed only could not reach the silent one
        if plan.head in failed:
            raise failed[plan.head]
        for device, error in failed.items():
            stalled = isinstance(error, StalledError)
            self._shunned.leave_out(device, error.message, STALLED_S if stalled else FAILED_S)

    def _release_others(self, plan: Plan) -> None:
        """Devices that are not in this ring free their windows of earlier epochs, of failed tries too."""
        there = {peer.device: peer for peer in self._roster.alive()}
        for device in self._holders - set(plan.devices):
            if device not in there:
                continue  # if it comes back with its windows, it is told then
            try:
                with self._calls.client(there[device]) as client:
                    client.release(plan.epoch - 1)
                self._holders.discard(device)
            except EdgedError as error:
                log.info("%s was not told to free its layers: %s", device, error.message)

    def _tell(self, step: Progress) -> None:
        with self._turn:
            for watcher in self._watchers:
                watcher.put(step)

    def _set(self, **changes: object) -> None:
        with self._turn:
            self._state = replace(self._state, **changes)  # type: ignore[arg-type]
            for watcher in self._watchers:
                watcher.put(None)
            self._turn.notify_all()


def _profiles(peers: dict[str, Peer]) -> dict[str, DeviceProfile]:
    return {device: peer.profile for device, peer in peers.items()}
