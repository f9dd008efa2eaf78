"""The coordinator's turns, with devices that only say whether they manage."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import pytest

from edged.cluster.assignment import Assignment
from edged.cluster.shunned import STRIKES
from edged.errors import (
    DiskFullError,
    EdgedError,
    OverloadedError,
    PlanError,
    RingBrokenError,
    RingError,
)
from edged.rpc.messages import Progress
from edged.store.manifest import Manifest
from tests.cluster.household import MIB, Household, manifest


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


def test_status_says_why_a_newcomer_is_left_out(household: Callable[..., Household]) -> None:
    home = household(objective="latency")
    home.coordinator.ensure(manifest())
    for names in (["a"], ["a", "b"], ["b"]):
        home.members = names
        home.settle()
        plan = home.coordinator.state.plan
        assert plan is not None and (plan.epoch, plan.devices) == (1, ("h",))
        assert [out.device for out in plan.left_out] == names
        assert all("faster without it" in out.reason for out in plan.left_out)


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


def test_a_ring_that_stands_still_goes_on_without_whoever_still_computes(
    household: Callable[..., Household],
) -> None:
    home = household("a", "b")
    home.coordinator.ensure(manifest())
    home.devices["a"].stuck = True
    home.coordinator.ring_broke(1, "no result came", stalled=True)
    plan = home.head.wait_for(lambda plan: plan.epoch > 1)
    assert plan.devices == ("h", "b")
    assert [out.reason for out in plan.left_out] == ["a does not get on with its layers"]


def test_a_ring_that_stands_still_again_and_again_gives_way_to_a_smaller_one(
    household: Callable[..., Household],
) -> None:
    home = household("a")
    home.coordinator.ensure(manifest())
    for epoch in range(1, STRIKES + 1):
        home.coordinator.ring_broke(epoch, "no result came", stalled=True)
        plan = home.head.wait_for(lambda plan, before=epoch: plan.epoch > before)
        assert plan.devices == (("h", "a") if epoch < STRIKES else ("h",))


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
