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
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue
from typing import Literal, Protocol

from edged.cluster.assignment import Assignment, Endpoint
from edged.cluster.member_client import MemberClient
from edged.cluster.shunned import FAILED_S, Shunned
from edged.cluster.switch import RingMember, switch
from edged.errors import EdgedError, OverloadedError, PeerLostError, PlanError, RingBrokenError
from edged.planning.balance import plan_balanced
from edged.planning.context import with_longest_context
from edged.planning.overflow import plan_overflowing
from edged.planning.plan import ContextOptions, LeftOut, Plan
from edged.planning.profile import DeviceProfile
from edged.rpc.messages import Progress
from edged.store.manifest import Manifest
from edged.store.model_profile import model_profile

log = logging.getLogger(__name__)

SETTLE_S = 0.5  # after a device came: others often come at the same time
RETRY_S = 5.0  # after a plan could not be made or carried out

Company = frozenset[DeviceProfile]
State = Literal["idle", "planning", "loading", "ready", "failed"]


@dataclass(frozen=True, slots=True)
class Peer:
    """Another device of the cluster as membership knows it."""

    device: str
    name: str
    host: str
    port: int
    profile: DeviceProfile


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
        wish: Callable[[Manifest], ContextOptions],
        last_epoch: Callable[[], int],
        say: Callable[[str], None] = lambda _: None,
        on_ready: Callable[[Manifest], None] = lambda _: None,
    ) -> None:
        """say: told in plain words what happens to the ring. on_ready: told which model runs now."""
        self._profile = profile
        self._port = port
        self._roster = roster
        self._local = local
        self._dial = dial
        self._head = head
        self._wish = wish
        self._last_epoch = last_epoch
        self._say = say
        self._on_ready = on_ready
        self._turn = threading.Condition()
        self._state = RingState()
        self._due: float | None = None  # monotonic time of the next turn
        self._broken = False
        self._closing = False
        self._clients: tuple[MemberClient, ...] = ()  # of the switch under way
        self._shunned = Shunned()
        self._ran: Manifest | None = None  # the model of the last ring that ran
        self._problems: dict[str, str] = {}  # by model: why it could not be loaded
        self._holders: set[str] = set()  # devices that may hold windows of some epoch
        self._company: Company = frozenset()  # who was there when the ring that runs was planned
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
            clients, self._clients = self._clients, ()
        for client in clients:
            client.close()

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

    def ring_broke(self, epoch: int, why: str, offender: str = "") -> None:
        """A link of the ring went away, because `offender` broke the rules if one is named.

        Ignored if it is not the ring that runs.
        """
        with self._turn:
            runs = self._state.state in ("loading", "ready")
            if self._closing or self._broken or not runs or epoch != self._state.epoch:
                return
            log.warning("the ring broke: %s", why)
            self._say(f"the ring broke: {why}")
            self._broken = True
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
            except EdgedError as error:
                self._fail(manifest, error.message)
            except Exception:
                if self._closing:
                    return  # its channels were closed under it
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
                self._shun_the_silent(self._state.plan)
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
        company = _company(peers)
        if company == self._company:
            return True
        try:
            if not self._is_same_ring(self._plan(manifest, peers)):
                return False
        except PlanError as error:
            if not {self._profile().device, *peers} >= set(running.devices):
                raise
            log.info("the ring stays as it is: %s", error.message)
        self._company = company
        return True

    def _present(self) -> dict[str, Peer]:
        shunned = self._shunned.reasons()
        return {peer.device: peer for peer in self._roster.alive() if peer.device not in shunned}

    def _shun_the_silent(self, plan: Plan) -> bool:
        """After a break: whoever does not answer at once is left out until it reports again. Whether any."""
        found = False
        for device, peer in self._present().items():
            if device in plan.devices:
                client = self._dial(peer)
                if not client.is_alive():
                    self._shunned.leave_out(device, f"{peer.name} does not answer")
                    found = True
                client.close()
        return found

    def _plan(self, manifest: Manifest, peers: dict[str, Peer]) -> Plan:
        me = self._profile()
        plan = _plan_with(
            self._wish(manifest),
            manifest,
            epoch=max(self._last_epoch(), self._state.epoch) + 1,
            head=me.device,
            devices=[me, *(peer.profile for peer in peers.values())],
        )
        shunned = tuple(LeftOut(device=device, reason=why) for device, why in self._shunned.reasons().items())
        return plan.model_copy(update={"left_out": plan.left_out + shunned})

    def _is_same_ring(self, plan: Plan) -> bool:
        now = self._state.plan
        return (
            now is not None
            and now.model == plan.model
            and now.hops == plan.hops
            and now.context == plan.context
        )

    def _carry_out(self, plan: Plan, manifest: Manifest, peers: dict[str, Peer]) -> None:
        log.info("epoch %d: %s", plan.epoch, plan.describe())
        self._set(state="loading", problem="", epoch=plan.epoch)
        self._head.detach()
        self._broken = False
        clients = {device: self._dial(peer) for device, peer in peers.items()}
        with self._turn:
            self._clients = tuple(clients.values())
        try:
            if self._closing:
                return
            members: dict[str, RingMember] = {
                device: clients.get(device, self._local) for device in plan.devices
            }
            self._holders.update(members)
            failed = switch(self._assignment(plan, manifest, peers), members, self._tell)
        finally:
            for client in clients.values():
                client.close()
        if failed:
            self._leave_out(failed, plan, peers)
            self._wake(0.0)
            return
        self._head.attach(manifest, plan)
        self._ran = manifest
        self._problems.pop(manifest.id, None)
        self._company = _company(peers)
        self._conclude(manifest, "ready", plan=plan)
        names = {plan.head: self._profile().name, **{device: peer.name for device, peer in peers.items()}}
        self._say(f"{manifest.name} runs: {plan.describe(names)}")
        if plan.note:
            self._say(f"{manifest.name}: {plan.note}")
        self._on_ready(manifest)
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
            log.warning("%s could not take part: %s", name, error.message)
            self._say(f"{name} could not take part: {error.message}")
        lost = any(isinstance(error, RingBrokenError | PeerLostError) for error in failed.values())
        if lost and self._shun_the_silent(plan):
            return  # whoever failed only could not reach the silent one
        if plan.head in failed:
            raise failed[plan.head]
        for device, error in failed.items():
            self._shunned.leave_out(device, error.message)

    def _release_others(self, plan: Plan) -> None:
        """Devices that are not in this ring free their windows of earlier epochs, of failed tries too."""
        there = {peer.device: peer for peer in self._roster.alive()}
        for device in self._holders - set(plan.devices):
            if device not in there:
                continue  # if it comes back with its windows, it is told then
            client = self._dial(there[device])
            try:
                client.release(plan.epoch - 1)
                self._holders.discard(device)
            except EdgedError as error:
                log.info("%s was not told to free its layers: %s", device, error.message)
            finally:
                client.close()

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


def _company(peers: dict[str, Peer]) -> Company:
    """Who is there, as far as a plan depends on it for longer than a moment."""
    return frozenset(peer.profile.lasting for peer in peers.values())


def _plan_with(
    wish: ContextOptions, manifest: Manifest, *, epoch: int, head: str, devices: list[DeviceProfile]
) -> Plan:
    """In memory if any context allows it, otherwise with layers streamed from disk."""
    refusal: PlanError | None = None
    for planner in (plan_balanced, plan_overflowing):
        plan_with = partial(planner, epoch=epoch, head=head, devices=devices, model=model_profile(manifest))
        try:
            return with_longest_context(wish, manifest.n_ctx_train, _of_context(plan_with))
        except PlanError as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def _of_context(plan_with: Callable[..., Plan]) -> Callable[[ContextOptions], Plan]:
    return lambda context: plan_with(context=context)
