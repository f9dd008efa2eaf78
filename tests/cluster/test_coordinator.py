"""The coordinator's turns, with devices that only say whether they manage."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import pytest

from edged.cluster.assignment import Assignment
from edged.cluster.coordinator import Coordinator, Peer
from edged.cluster.ring_planner import RingPlanner
from edged.errors import (
    DiskFullError,
    EdgedError,
    OverloadedError,
    PeerLostError,
    PlanError,
    RingBrokenError,
    RingError,
)
from edged.planning.plan import ContextOptions, Plan
from edged.planning.profile import DeviceProfile
from edged.rpc.messages import Progress
from edged.store.manifest import Manifest, Part, TensorEntry

MIB = 2**20


def manifest(name: str = "m", n_layers: int = 12) -> Manifest:
    def part(label: str, index: int) -> Part:
        weights = TensorEntry(name=label, ggml_type=0, shape=(MIB // 4,), offset=0, nbytes=MIB)
        return Part(name=label, sha256=f"{index:064x}", size=MIB, tensors=(weights,))

    layers = tuple(part(f"layer.{i:03d}", i) for i in range(n_layers))
    return Manifest(
        name=name,
        architecture="llama",
        n_layers=n_layers,
        n_embd=64,
        n_vocab=100,
        n_ctx_train=2048,
        kv_bytes_per_token_layer=256,
        boundaries=tuple(range(1, n_layers)),
        metadata=(),
        parts=(*layers, part("embedding", 1000), part("vocab", 1001)),
    )


def profile(device: str, memory: int = 4096 * MIB) -> DeviceProfile:
    return DeviceProfile(
        device=device,
        name=device,
        memory_budget=memory,
        disk_free=2**40,
        threads=1,
        bandwidth=1e8,  # so that a layer takes longer than a hop
        flops=1e9,
    )


class Device:
    """A device of the ring; `error` is what it fails with."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.error: EdgedError | None = None
        self.error_once: EdgedError | None = None
        self.answers = True
        self.hangs = False  # in prepare, until the call is broken off
        self.hangs_freeing = False
        self.preparing = threading.Event()
        self.closed = threading.Event()
        self.may_finish = threading.Event()
        self.may_finish.set()
        self.epochs: list[int] = []
        self.released: list[int] = []
        self.freed = threading.Event()
        self.refuses: EdgedError | None = None  # to be activated

    def prepare(self, assignment: Assignment) -> Iterator[Progress]:
        yield Progress(stage="loading layers", device=self.name)
        self.preparing.set()
        if self.hangs:
            self.closed.wait(10)
            raise PeerLostError("the call was broken off")
        self.may_finish.wait(10)
        error, self.error_once = self.error or self.error_once, None
        if error is not None:
            raise error

    def activate(self, epoch: int) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.epochs.append(epoch)

    def release(self, epoch: int) -> None:
        self.released.append(epoch)
        self.freed.set()
        if self.hangs_freeing:
            self.closed.clear()
            assert self.closed.wait(10)
            raise PeerLostError("the call was broken off")

    def wait_released(self) -> list[int]:
        assert self.freed.wait(5)
        return self.released

    def is_alive(self) -> bool:
        return self.answers

    def close(self) -> None:
        self.closed.set()


class FakeHead:
    def __init__(self) -> None:
        self.is_busy = False
        self.plans: list[Plan] = []
        self.attached = threading.Condition()

    def attach(self, manifest: Manifest, plan: Plan) -> None:
        with self.attached:
            self.plans.append(plan)
            self.attached.notify_all()

    def detach(self) -> None:
        pass

    def wait_for(self, what: Callable[[Plan], bool]) -> Plan:
        with self.attached:
            assert self.attached.wait_for(lambda: bool(self.plans) and what(self.plans[-1]), timeout=10)
            return self.plans[-1]


class Household:
    """Head `h` and whoever is in `members`."""

    def __init__(self, *names: str, memory: int = 4096 * MIB) -> None:
        self.head = FakeHead()
        self.devices = {name: Device(name) for name in ("h", *names)}
        self.members = list(names)
        self.called: dict[str, str] = {}  # names of devices that are not called by their id
        self.said: list[str] = []
        self.memory = memory
        self.n_ctx = 512
        self.planning = threading.Event()  # a turn waits for `may_plan`
        self.may_plan = threading.Event()
        self.may_plan.set()
        self.looked = threading.Event()
        self.coordinator = Coordinator(
            profile=lambda: profile("h", self.memory),
            port=7411,
            roster=self,
            local=self.devices["h"],
            dial=lambda peer: self.devices[peer.device],  # type: ignore[arg-type, return-value]
            head=self.head,
            planner=RingPlanner(lambda: profile("h", self.memory), tuple, self.wish, "throughput"),
            last_epoch=lambda: 0,
            say=self.said.append,
        )

    def wish(self, _: Manifest) -> ContextOptions:
        return ContextOptions(n_ctx=self.n_ctx, n_seq_max=1, n_ubatch=64)

    def alive(self) -> list[Peer]:
        self.looked.set()
        if not self.may_plan.is_set():
            self.planning.set()
            self.may_plan.wait(10)
        return [
            Peer(name, self.called.get(name, name), "10.0.0.1", 7411, profile(name)) for name in self.members
        ]

    def settle(self) -> None:
        """Returns when a turn that began after this call has ended: each asks at most twice who is there."""
        for _ in range(4):
            self.looked.clear()
            self.coordinator.members_changed()
            assert self.looked.wait(5)

    def add(self, name: str) -> None:
        self.devices[name] = Device(name)
        self.members.append(name)
        self.coordinator.members_changed()


@pytest.fixture
def household(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Household]]:
    monkeypatch.setattr("edged.cluster.coordinator.SETTLE_S", 0.01)
    made: list[Household] = []

    def make(*names: str, **kwargs: int) -> Household:
        made.append(Household(*names, **kwargs))
        made[-1].coordinator.start()
        return made[-1]

    yield make
    for home in made:
        home.coordinator.close()


def test_a_model_is_loaded_on_everyone(household: Callable[..., Household]) -> None:
    home = household("a", "b")
    steps = list(home.coordinator.load(manifest()))
    assert {step.device for step in steps} == {"h", "a", "b"}
    assert home.coordinator.state.state == "ready"
    assert set(home.head.plans[-1].devices) == {"h", "a", "b"}
    assert all(device.epochs == [1] for device in home.devices.values())


def test_a_context_shorter_than_wished_is_told(
    household: Callable[..., Household], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = household("a")
    said: list[str] = []
    monkeypatch.setattr(home.coordinator, "_say", said.append)
    home.n_ctx = 4096
    home.coordinator.ensure(manifest())
    plan = home.head.wait_for(lambda plan: True)
    assert plan.context.n_ctx == 2048
    home.settle()
    assert f"m: {plan.note}" in said and "trained on 2048 tokens" in plan.note


def test_whoever_joins_is_used_in_the_next_epoch(household: Callable[..., Household]) -> None:
    home = household("a")
    home.coordinator.ensure(manifest())
    home.add("b")
    plan = home.head.wait_for(lambda plan: "b" in plan.devices)
    assert plan.epoch == 2


def test_nothing_is_switched_if_the_ring_stays_the_same(household: Callable[..., Household]) -> None:
    home = household("a")
    home.coordinator.ensure(manifest())
    home.coordinator.members_changed()
    home.coordinator.ensure(manifest())
    home.add("b")
    assert home.head.wait_for(lambda plan: "b" in plan.devices).epoch == 2


def test_a_device_that_cannot_prepare_is_left_out(
    household: Callable[..., Household],
) -> None:
    home = household("a", "b")
    home.devices["a"].error = DiskFullError("no room on a")
    home.coordinator.ensure(manifest())
    plan = home.head.wait_for(lambda plan: plan.devices == ("h", "b"))
    assert [(out.device, out.reason) for out in plan.left_out] == [("a", "no room on a")]


def test_a_device_that_was_shunned_gets_another_chance(household: Callable[..., Household]) -> None:
    home = household("a")
    home.devices["a"].error = DiskFullError("no room on a")
    home.coordinator.ensure(manifest())
    home.head.wait_for(lambda plan: plan.devices == ("h",))
    home.devices["a"].error = None
    home.coordinator.device_returned("a")
    home.head.wait_for(lambda plan: "a" in plan.devices)


def test_a_broken_ring_is_rebuilt_without_the_silent_device(household: Callable[..., Household]) -> None:
    home = household("a", "b")
    home.coordinator.ensure(manifest())
    home.devices["a"].answers = False
    home.coordinator.ring_broke(1, "lost the link to a")
    plan = home.head.wait_for(lambda plan: plan.epoch > 1)
    assert plan.devices == ("h", "b")


def test_people_read_names_where_the_ring_knows_ids(household: Callable[..., Household]) -> None:
    home = household("635e51267f0dd251")
    home.called["635e51267f0dd251"] = "attic"
    home.coordinator.ensure(manifest())
    home.coordinator.ring_broke(1, "the link from 635e51267f0dd251 broke")
    assert "the ring broke: the link from attic broke" in home.said


def test_news_of_an_old_epoch_breaks_nothing(household: Callable[..., Household]) -> None:
    home = household("a")
    home.coordinator.ensure(manifest())
    home.coordinator.ring_broke(0, "old news")
    assert home.coordinator.state.state == "ready"


def test_a_released_device_is_told(household: Callable[..., Household]) -> None:
    home = household("a", "b")
    home.coordinator.ensure(manifest())
    home.members.remove("a")
    home.coordinator.members_changed()
    home.head.wait_for(lambda plan: "a" not in plan.devices)
    home.coordinator.ensure(manifest(n_layers=2, name="tiny"))  # too few layers for a ring
    assert home.head.plans[-1].devices == ("h",)
    assert home.devices["b"].wait_released() == [2]


def test_a_busy_head_keeps_its_model(household: Callable[..., Household]) -> None:
    home = household()
    home.coordinator.ensure(manifest())
    home.head.is_busy = True
    with pytest.raises(OverloadedError, match="m is answering"):
        home.coordinator.ensure(manifest("other"))


def test_a_model_too_large_fails_with_numbers_until_memory_comes(household: Callable[..., Household]) -> None:
    home = household(memory=MIB)
    with pytest.raises(PlanError, match="GiB"):
        home.coordinator.ensure(manifest())
    assert home.coordinator.state.state == "failed"
    home.memory = 4096 * MIB
    home.coordinator.ensure(manifest())
    assert home.coordinator.state.state == "ready"


def test_the_heads_own_failure_fails_the_load(household: Callable[..., Household]) -> None:
    home = household("a")
    home.devices["h"].error = DiskFullError("no room at home")
    with pytest.raises(EdgedError, match="no room at home"):
        home.coordinator.ensure(manifest())


def test_closing_wakes_those_who_wait(household: Callable[..., Household]) -> None:
    home = household()
    released = threading.Event()
    home.devices["h"].prepare = lambda _: iter(released.wait(10) and ())  # type: ignore[method-assign, assignment]
    failures: list[EdgedError] = []

    def wait() -> None:
        try:
            home.coordinator.ensure(manifest())
        except EdgedError as error:
            failures.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    closer = threading.Thread(target=home.coordinator.close)
    closer.start()
    waiter.join(5)
    released.set()
    closer.join(5)
    assert not closer.is_alive()
    assert not waiter.is_alive()


def test_a_device_that_never_gets_ready_does_not_hold_up_the_end(
    household: Callable[..., Household],
) -> None:
    home = household("a")
    home.devices["a"].hangs = True

    def load() -> None:
        with contextlib.suppress(EdgedError):
            home.coordinator.ensure(manifest())

    loading = threading.Thread(target=load)
    loading.start()
    assert home.devices["a"].preparing.wait(5)
    assert not home.devices["a"].closed.is_set()
    home.coordinator.call_off()
    assert home.devices["a"].closed.is_set()
    loading.join(5)
    assert not loading.is_alive()


def test_a_device_that_does_not_free_its_layers_does_not_hold_up_the_end(
    household: Callable[..., Household],
) -> None:
    home = household("a")
    home.coordinator.ensure(manifest())
    device = home.devices["a"]
    device.hangs_freeing = True
    device.error = DiskFullError("no room")
    home.coordinator.ring_broke(home.coordinator.state.epoch, "a cable")
    assert device.freed.wait(10)
    home.coordinator.call_off()
    home.coordinator.close()
    assert device.closed.is_set()


@pytest.mark.parametrize("first_fails", [False, True])
def test_the_end_of_one_load_is_not_taken_for_that_of_another(
    household: Callable[..., Household], first_fails: bool
) -> None:
    """The second model is wanted while the first is being loaded."""
    home = household()
    device = home.devices["h"]
    device.may_finish.clear()
    device.error = DiskFullError("no room for the first") if first_fails else None
    running: list[str] = []
    first, second = manifest("first"), manifest("second")

    def want(model: Manifest) -> None:
        with contextlib.suppress(OverloadedError):
            home.coordinator.ensure(model)
            running.append(home.head.plans[-1].model)

    threads = [threading.Thread(target=want, args=(model,)) for model in (first, second)]
    threads[0].start()
    assert device.preparing.wait(5)
    threads[1].start()
    threads[0].join(5)  # it is told that another model was wanted
    assert not threads[0].is_alive()
    device.error_once, device.error = device.error, None
    home.may_plan.clear()
    device.may_finish.set()
    assert home.planning.wait(5)  # the second model's turn begins
    threads[1].join(0.2)
    assert threads[1].is_alive()
    home.may_plan.set()
    threads[1].join(10)
    assert running == [second.id]


def test_a_device_that_failed_frees_what_it_had_loaded(household: Callable[..., Household]) -> None:
    home = household("a", "b")
    home.devices["a"].refuses = RingError("not today")
    home.coordinator.ensure(manifest())
    assert "a" not in home.head.plans[-1].devices
    assert home.devices["a"].wait_released() == [1]


def test_whoever_cannot_reach_a_dead_device_is_not_the_one_left_out(
    household: Callable[..., Household],
) -> None:
    home = household("a", "b")
    home.devices["b"].answers = False
    for name in ("a", "h"):
        home.devices[name].refuses = RingBrokenError("cannot open the ring's link to b")

    def is_alive() -> bool:
        home.devices["a"].refuses = home.devices["h"].refuses = None
        return False

    home.devices["b"].is_alive = is_alive  # type: ignore[method-assign]
    home.coordinator.ensure(manifest())
    assert home.head.plans[-1].devices == ("h", "a")


def test_free_memory_that_shrinks_does_not_disturb_a_ring_that_runs(
    household: Callable[..., Household],
) -> None:
    home = household("a", "b")
    home.coordinator.ensure(manifest(n_layers=2, name="tiny"))  # runs on the head alone
    home.memory = MIB  # other programs take it
    home.members.remove("b")
    home.settle()
    assert home.coordinator.state.state == "ready"
    assert len(home.head.plans) == 1


def test_free_memory_that_grows_does_not_disturb_a_ring_that_runs(
    household: Callable[..., Household],
) -> None:
    home = household("a", memory=52 * MIB)
    home.coordinator.ensure(manifest(n_layers=100))
    plan = home.head.plans[-1]
    home.memory *= 8
    home.settle()
    assert home.head.plans == [plan]


def test_after_a_failed_load_the_ring_comes_back_by_itself(household: Callable[..., Household]) -> None:
    home = household("a")
    home.coordinator.ensure(manifest())
    prepare = home.devices["h"].prepare

    def fail_for_huge(assignment: Assignment) -> Iterator[Progress]:
        if Manifest.unpack(assignment.manifest).name == "huge":
            raise DiskFullError("no room at home")
        return prepare(assignment)

    home.devices["h"].prepare = fail_for_huge  # type: ignore[method-assign]
    with pytest.raises(EdgedError, match="no room at home"):
        home.coordinator.ensure(manifest("huge"))
    plan = home.head.wait_for(lambda plan: plan.epoch > 2)
    assert plan.model == manifest().id


def test_a_device_that_keeps_breaking_the_rules_is_left_out(household: Callable[..., Household]) -> None:
    home = household("a", "b")
    home.coordinator.ensure(manifest())
    for _ in range(3):
        epoch = home.head.plans[-1].epoch
        home.coordinator.ring_broke(epoch, "a sends garbage", offender="a")
        home.head.wait_for(lambda plan, epoch=epoch: plan.epoch > epoch)  # type: ignore[misc]
    plan = home.head.plans[-1]
    assert plan.devices == ("h", "b")
    assert [(out.device, out.reason) for out in plan.left_out] == [("a", "a sends garbage")]
    home.coordinator.device_returned("a")
    home.coordinator.ensure(manifest())
    assert home.head.plans[-1].devices == ("h", "b")
