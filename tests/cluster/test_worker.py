"""Workers with real stores and real windows; only the cables between them are in memory."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest

from edged.backend.native import load_window
from edged.backend.residency import Placing
from edged.backend.source import WindowSource
from edged.backend.window import Batch, KvOp, Window
from edged.cluster.assignment import Assignment
from edged.cluster.worker import Worker
from edged.errors import EdgedError, MissingPartError, RingError, WindowError
from edged.planning.plan import ContextOptions, Hop, Plan
from edged.ring.memory import MemoryNetwork
from edged.ring.ring import Result
from edged.store.catalogue import Catalogue
from edged.store.importer import import_model
from edged.store.manifest import Manifest
from edged.store.part_source import PartSource
from tests.models.architectures import Shape
from tests.models.random_models import write_random_model

CONTEXT = ContextOptions(n_ctx=64, n_seq_max=1, n_ubatch=16, flash_attention="off")
TOKENS = np.array([5, 9, 200, 17, 33, 4, 250], np.int32)


class Shelf:
    """Another device's store as a source of parts."""

    def __init__(self, device: str, catalogue: Catalogue) -> None:
        self.device = device
        self._catalogue = catalogue
        self.fetched = 0

    def which(self, shas: Sequence[str]) -> set[str]:
        return {sha for sha in shas if self._catalogue.has(sha)}

    def fetch(self, sha256: str, offset: int, size: int) -> Generator[bytes, None, None]:
        self.fetched += 1
        body = self._catalogue.path(sha256).read_bytes()[offset:]
        yield from (body[at : at + 4096] for at in range(0, len(body), 4096))

    def close(self) -> None:
        pass


class Household:
    def __init__(self, root: Path, manifest: Manifest, owner: Path) -> None:
        self.manifest = manifest
        self.results: SimpleQueue[Result] = SimpleQueue()
        self.broken: SimpleQueue[tuple[int, EdgedError]] = SimpleQueue()
        self.loads: list[tuple[int, int]] = []
        self.tried: list[tuple[str, str]] = []
        self.stopped = False
        self.said: dict[str, list[str]] = {"head": [], "a": [], "b": []}
        network = MemoryNetwork()
        self.stores = {"head": Catalogue(owner), "a": Catalogue(root / "a"), "b": Catalogue(root / "b")}
        self.shelves = {name: Shelf(name, store) for name, store in self.stores.items()}
        self.workers = {
            name: Worker(
                device=name,
                name=name,
                catalogue=store,
                load_window=self.load,
                try_model=lambda manifest, name=name: self.tried.append((name, manifest.id)),  # type: ignore[misc]
                transport=network.transport(name),
                surroundings=Surroundings(name, self),
                on_result=self.results.put,
                on_broken=lambda epoch, error: self.broken.put((epoch, error)),
                say=self.said[name].append,
            )
            for name, store in self.stores.items()
        }

    def load(
        self,
        source: WindowSource,
        context: ContextOptions,
        placing: Placing,
        progress: Callable[[float], None],
    ) -> Window:
        self.loads.append((source.first, source.last))
        return load_window(source, context, 1, placing.gpu_layers, progress)

    def plan(self, epoch: int, *hops: tuple[str, int, int]) -> Plan:
        ring = tuple(Hop(device=device, first=first, last=last) for device, first, last in hops)
        n_layers = self.manifest.n_layers
        return Plan(epoch=epoch, model=self.manifest.id, n_layers=n_layers, hops=ring, context=CONTEXT)

    def assignment(self, plan: Plan) -> Assignment:
        return Assignment(plan=plan, manifest=self.manifest.pack(), endpoints=(), sources=("head", "a", "b"))

    def run(self, plan: Plan) -> None:
        for device in plan.devices:
            steps = list(self.workers[device].prepare(self.assignment(plan)))
            assert steps[-1].finished
        for device in reversed(plan.devices):
            self.workers[device].activate(plan.epoch)

    def logits(self) -> np.ndarray:
        """Of every token of TOKENS, through the ring that runs."""
        ring = self.workers["head"].ring
        assert ring is not None
        n = len(TOKENS)
        batch = Batch(np.zeros(n, np.int32), np.arange(n, dtype=np.int32), np.ones(n, np.bool_))
        ring.submit(1, (), batch, TOKENS)
        result = self.results.get(timeout=30)
        assert result.failure is None
        assert result.logits is not None
        return result.logits.copy()

    def held(self, device: str) -> set[str]:
        """Parts on its disk, but for the few bytes that every window shares."""
        return {part.name for part in self.manifest.parts if self.stores[device].has(part.sha256)} - {
            "shared"
        }


class Surroundings:
    def __init__(self, device: str, household: Household) -> None:
        self._device = device
        self._household = household

    def learn(self, assignment: Assignment) -> None:
        pass

    def sources(self, devices: Sequence[str]) -> list[PartSource]:
        return [self._household.shelves[device] for device in devices if device != self._device]


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("owner")
    file = write_random_model(folder / "small.gguf", shape=Shape(n_layers=6))
    return folder, import_model(file, Catalogue(folder))


@pytest.fixture
def household(owner: tuple[Path, Manifest], tmp_path: Path) -> Iterator[Household]:
    folder, manifest = owner
    shutil.copytree(folder / "store", tmp_path / "head" / "store")
    home = Household(tmp_path, manifest, tmp_path / "head")
    yield home
    for worker in home.workers.values():
        worker.close()


@pytest.fixture(scope="module")
def alone(owner: tuple[Path, Manifest], tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Logits of the whole model in one window."""
    folder, manifest = owner
    home = Household(tmp_path_factory.mktemp("alone"), manifest, folder)
    home.run(home.plan(1, ("head", 0, 6)))
    try:
        return home.logits()
    finally:
        home.workers["head"].close()


def test_a_ring_gives_the_logits_of_the_whole_model(household: Household, alone: np.ndarray) -> None:
    household.run(household.plan(1, ("head", 0, 2), ("a", 2, 4), ("b", 4, 5), ("head", 5, 6)))
    assert np.array_equal(household.logits(), alone)


def test_a_disk_holds_only_what_its_device_runs(household: Household) -> None:
    household.run(household.plan(1, ("head", 0, 2), ("a", 2, 4), ("b", 4, 5), ("head", 5, 6)))
    assert household.held("a") == {"layer.002", "layer.003"}
    assert household.held("b") == {"layer.004"}
    assert household.held("head") == {part.name for part in household.manifest.parts} - {"shared"}


def test_a_new_epoch_moves_layers_and_keeps_windows_that_fit(household: Household, alone: np.ndarray) -> None:
    household.run(household.plan(1, ("head", 0, 2), ("a", 2, 4), ("b", 4, 5), ("head", 5, 6)))
    household.logits()
    household.loads.clear()
    household.run(household.plan(2, ("head", 0, 2), ("a", 2, 3), ("b", 3, 5), ("head", 5, 6)))
    assert sorted(household.loads) == [(2, 3), (3, 5)]  # the head's two windows stay loaded, emptied
    assert np.array_equal(household.logits(), alone)
    assert household.held("a") == {"layer.002"}
    assert household.held("b") == {"layer.003", "layer.004"}


def test_a_damaged_layer_is_fetched_again(household: Household, alone: np.ndarray) -> None:
    plan = household.plan(1, ("head", 0, 2), ("a", 2, 5), ("head", 5, 6))
    household.run(plan)
    household.workers["a"].release(1)
    path = household.stores["a"].path(household.manifest.layer(3).sha256)
    body = bytearray(path.read_bytes())
    body[-100] ^= 1
    path.write_bytes(body)
    household.shelves["head"].fetched = 0
    household.run(plan.model_copy(update={"epoch": 2}))
    assert household.shelves["head"].fetched == 1
    assert np.array_equal(household.logits(), alone)


def test_an_owner_keeps_all_layers_even_when_one_is_damaged(household: Household) -> None:
    """The one that others have to bring back must not be the first that it drops."""
    store = household.stores["head"]
    household.run(household.plan(1, ("head", 0, 2), ("a", 2, 5), ("head", 5, 6)))
    store.path(household.manifest.layer(3).sha256).unlink()
    household.run(household.plan(2, ("head", 0, 3), ("a", 3, 5), ("head", 5, 6)))
    assert household.held("head") == {part.name for part in household.manifest.parts} - {
        "shared",
        "layer.003",
    }


def test_a_model_that_is_not_its_own_is_tried_by_a_device(household: Household, alone: np.ndarray) -> None:
    manifest = household.manifest
    plan = household.plan(1, ("head", 0, 2), ("a", 2, 5), ("head", 5, 6))
    household.run(plan)
    assert household.tried == [("a", manifest.id)]  # the head has imported it, and so tried it
    household.run(household.plan(2, ("head", 0, 3), ("a", 3, 5), ("head", 5, 6)))
    assert len(household.tried) == 1
    household.run(household.plan(3, ("head", 0, 1), ("a", 1, 5), ("head", 5, 6)))
    assert len(household.tried) == 2  # there is a layer that `a` had not
    household.tried.clear()
    shutil.copytree(household.stores["head"].home / "store", household.stores["b"].home / "store2")
    household.stores["head"].remove(manifest.name)
    (household.stores["b"].home / "store").rename(household.stores["b"].home / "store1")
    (household.stores["b"].home / "store2").rename(household.stores["b"].home / "store")
    household.run(plan.model_copy(update={"epoch": 4}))
    household.run(plan.model_copy(update={"epoch": 5}))
    assert household.tried == [("head", manifest.id)]
    assert np.array_equal(household.logits(), alone)


def test_a_layer_that_nobody_has_is_named(household: Household) -> None:
    store = household.stores["head"]
    store.path(household.manifest.layer(3).sha256).unlink()
    plan = household.plan(1, ("head", 0, 2), ("a", 2, 5), ("head", 5, 6))
    with pytest.raises(MissingPartError, match=r"layer\.003"):
        list(household.workers["a"].prepare(household.assignment(plan)))


def test_an_old_epoch_is_not_prepared(household: Household) -> None:
    household.run(household.plan(3, ("head", 0, 6)))
    with pytest.raises(RingError, match="epoch 2 is over"):
        household.workers["head"].prepare(household.assignment(household.plan(2, ("head", 0, 6))))


def test_only_what_is_prepared_is_activated(household: Household) -> None:
    with pytest.raises(RingError, match="has not prepared epoch 7"):
        household.workers["a"].activate(7)


def test_release_frees_memory_and_tells_the_neighbours(household: Household) -> None:
    household.run(household.plan(1, ("head", 0, 2), ("a", 2, 5), ("head", 5, 6)))
    windows = list(household.workers["a"]._windows.values())
    assert windows
    household.workers["a"].release(1)
    assert not household.workers["a"]._windows
    with pytest.raises(WindowError, match="closed"):
        windows[0].apply(KvOp("clear"))
    assert household.broken.get(timeout=10)[0] == 1


def test_a_device_says_once_why_its_windows_fail(
    household: Household, monkeypatch: pytest.MonkeyPatch, alone: np.ndarray
) -> None:
    household.run(household.plan(1, ("head", 0, 2), ("a", 2, 5), ("head", 5, 6)))
    before = len(household.said["a"])
    ring = household.workers["head"].ring
    (window,) = household.workers["a"]._windows.values()
    assert ring is not None

    def lost(*_: object) -> np.ndarray:
        raise WindowError("the disk is gone; plug it in")

    batch = Batch(np.zeros(1, np.int32), np.zeros(1, np.int32), np.ones(1, np.bool_))
    with monkeypatch.context() as broken:
        broken.setattr(window, "run", lost)
        for number in (2, 3):
            ring.submit(number, (KvOp("clear"),), batch, TOKENS[:1])
            failure = household.results.get(timeout=30).failure
            assert failure is not None and failure.device == "a" and "plug it in" in failure.message
    assert household.said["a"][before:] == ["a request failed on this device: the disk is gone; plug it in"]
    ring.submit(4, (KvOp("clear"),), batch, TOKENS[:1])
    assert household.results.get(timeout=30).failure is None


def test_a_manifest_for_another_plan_is_refused(household: Household) -> None:
    plan = household.plan(1, ("head", 0, 6)).model_copy(update={"model": "0" * 64})
    with pytest.raises(RingError, match="another model"):
        list(household.workers["head"].prepare(household.assignment(plan)))


def test_a_window_that_will_not_load_leaves_the_device_usable(
    household: Household, monkeypatch: pytest.MonkeyPatch, alone: np.ndarray
) -> None:
    def fail(*_: object) -> Window:
        raise RingError("no memory today")

    load: Callable[..., Window] = household.workers["head"]._load_window
    monkeypatch.setattr(household.workers["head"], "_load_window", fail)
    with pytest.raises(RingError, match="no memory today"):
        household.run(household.plan(1, ("head", 0, 6)))
    monkeypatch.setattr(household.workers["head"], "_load_window", load)
    household.run(household.plan(2, ("head", 0, 6)))
    assert np.array_equal(household.logits(), alone)


def test_a_device_that_stops_gives_up_its_load(household: Household, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = household.workers["head"]
    loading, load = threading.Event(), household.load

    def endless(
        source: WindowSource, context: ContextOptions, placing: Placing, progress: Callable[[float], None]
    ) -> Window:
        loading.set()
        while not household.stopped:
            progress(0.5)
        return load(source, context, placing, progress)

    monkeypatch.setattr(worker, "_load_window", endless)
    failures: list[EdgedError] = []

    def prepare() -> None:
        try:
            list(worker.prepare(household.assignment(household.plan(1, ("head", 0, 6)))))
        except EdgedError as error:
            failures.append(error)

    preparing = threading.Thread(target=prepare)
    preparing.start()
    assert loading.wait(10)
    worker.call_off()
    preparing.join(10)
    household.stopped = True  # lets a load go that nothing else ended
    preparing.join()
    assert [error.message for error in failures] == ["head is stopping"]
    with pytest.raises(RingError, match="is stopping"):
        worker.prepare(household.assignment(household.plan(2, ("head", 0, 6))))
