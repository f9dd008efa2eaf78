"""A coordinator, and devices that only say whether they manage."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from edged.cluster.assignment import Assignment
from edged.cluster.coordinator import Coordinator
from edged.cluster.ring_planner import RingPlanner
from edged.cluster.roll_call import Peer
from edged.errors import (
    EdgedError,
    PeerLostError,
)
from edged.planning.plan import ContextOptions, Objective, Plan
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
        self.stuck = False  # in a window
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

    def is_computing(self) -> bool:
        return self.stuck

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

    def __init__(self, *names: str, memory: int = 4096 * MIB, objective: Objective = "throughput") -> None:
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
            planner=RingPlanner(lambda: profile("h", self.memory), tuple, self.wish, objective),
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
