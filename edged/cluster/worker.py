"""This device's part in the ring: fetch the layers, load the windows, join the ring of the epoch."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from edged.backend.residency import Placing, ResidencyFigures
from edged.backend.source import WindowSource
from edged.backend.window import KvOp, Window
from edged.cluster.assignment import Assignment, with_names
from edged.cluster.placings import placings_of
from edged.cluster.stepwise import Report, stepwise
from edged.errors import DamagedPartError, EdgedError, RingError
from edged.planning.plan import ContextOptions, Hop, Plan
from edged.ring.ring import Result, Ring
from edged.ring.stage import Stage
from edged.ring.stats import StageStats
from edged.ring.transport import Transport
from edged.rpc.messages import Progress
from edged.store.catalogue import Catalogue
from edged.store.compose import compose
from edged.store.fetch import fetch_parts
from edged.store.manifest import Manifest, Part
from edged.store.part_source import PartSource

log = logging.getLogger(__name__)

LoadWindow = Callable[[WindowSource, ContextOptions, Placing, Callable[[float], None]], Window]
"""Loads a window. The last argument is called often with the
share done; what it raises ends the load. Raises WindowError."""


class Surroundings(Protocol):
    """What a worker needs of the network."""

    def learn(self, assignment: Assignment) -> None:
        """Remember where everybody listens."""
        ...

    def sources(self, devices: Sequence[str]) -> list[PartSource]:
        """These devices as sources of parts, this one left out; whoever uses them closes them."""
        ...


@dataclass(frozen=True, slots=True)
class _WindowKey:
    """Windows that agree in this are interchangeable, once their KV is cleared."""

    model: str
    first: int
    last: int
    gpu_layers: int
    streams_output: bool
    context: ContextOptions

    @classmethod
    def of(cls, plan: Plan, hop: Hop) -> _WindowKey:
        return cls(plan.model, hop.first, hop.last, hop.gpu_layers, hop.streams_output, plan.context)


class Worker:
    """Prepares, joins and leaves rings, one epoch after the other. Methods may be called from any thread.

    try_model: raises ModelError for a model that libllama would not survive.
    on_result: where this device is the head, what the engine takes results with.
    say: told in plain words what this device does.
    place_window: moves the layers of a loaded window to where a new plan wants them. Raises WindowError.
    residency: figures of the windows that `load_window` has made.
    on_broken: (epoch, error) once a ring that was joined has lost a link.
    """

    def __init__(
        self,
        *,
        device: str,
        name: str,
        catalogue: Catalogue,
        load_window: LoadWindow,
        try_model: Callable[[Manifest], None],
        transport: Transport,
        surroundings: Surroundings,
        on_result: Callable[[Result], None],
        on_broken: Callable[[int, EdgedError], None],
        say: Callable[[str], None] = lambda _: None,
        place_window: Callable[[Window, Placing], None] = lambda one, to: one.stream(to.streamed, to.spare),
        residency: Callable[[], ResidencyFigures] = ResidencyFigures,
    ) -> None:
        self._device = device
        self._name = name
        self._catalogue = catalogue
        self._load_window = load_window
        self._try_model = try_model
        self._tried: set[str] = set()  # parts, by SHA-256
        self._transport = transport
        self._surroundings = surroundings
        self._on_result = on_result
        self._on_broken = on_broken
        self._say = say
        self._place_window = place_window
        self._residency = residency
        self._lock = threading.Lock()  # one preparation, activation or release at a time
        self._asking = threading.Lock()
        self._latest = 0  # the newest epoch asked for; an older preparation gives up
        self._called_off = False  # for good: this daemon stops
        self._windows: dict[_WindowKey, Window] = {}
        self._stage: Stage | Ring | None = None
        self._manifest: Manifest | None = None
        self._last_failure = ""

    @property
    def epoch(self) -> int:
        """The epoch whose windows are here; 0 for none."""
        stage = self._stage
        return stage.plan.epoch if stage is not None else 0

    @property
    def latest_epoch(self) -> int:
        """The newest epoch this device has heard of."""
        return self._latest

    @property
    def is_computing(self) -> bool:
        """Whether a window of the ring runs at this moment."""
        stage = self._stage
        return isinstance(stage, Stage) and stage.is_computing

    @property
    def memory_held(self) -> int:
        """Bytes of all windows loaded here, and of what is read ahead for them."""
        windows = sum(window.memory.total for window in list(self._windows.values()))
        return windows + self._residency().read_ahead

    @property
    def residency(self) -> ResidencyFigures:
        return self._residency()

    @property
    def ring(self) -> Ring | None:
        """On the head, the ring to submit batches to."""
        return self._stage if isinstance(self._stage, Ring) else None

    @property
    def stats(self) -> StageStats | None:
        stage = self._stage
        return stage.stats() if stage is not None else None

    def prepare(self, assignment: Assignment) -> Iterator[Progress]:
        """Fetches, checks and loads what `assignment` gives this device. Raises EdgedError.

        The ring of the epoch before ends here. A preparation that a newer one overtakes raises RingError.
        """
        epoch = assignment.plan.epoch
        with self._asking:
            self._give_up_if_called_off()
            if epoch <= self._latest:
                raise RingError(f"epoch {epoch} is over: this device has been asked for epoch {self._latest}")
            self._latest = epoch
        return stepwise(lambda report: self._prepare(assignment, report), name=f"prepare-{epoch}")

    def activate(self, epoch: int) -> None:
        """Opens the links to the successors. Raises RingError if this epoch is not prepared."""
        with self._lock:
            self._give_up_if_called_off()
            stage = self._stage
            if stage is None or stage.plan.epoch != epoch:
                raise RingError(f"{self._name} has not prepared epoch {epoch}")
            stage.connect()
            self._drop_other_layers(stage.plan)
        if stage.plan.head != self._device and self._manifest is not None:
            layers = ", ".join(f"{hop.first}-{hop.last - 1}" for hop in self._hops(stage.plan))
            self._say(f"runs layers {layers} of {self._manifest.name}")

    def release(self, epoch: int) -> None:
        """Leaves every ring up to `epoch` and frees its windows."""
        with self._lock:
            if self._stage is not None and self._stage.plan.epoch > epoch:
                return
            self._leave()
            self._keep_windows(set())

    def call_off(self) -> None:
        """The device stops: it leaves the ring, prepares no other, and what is under way gives up soon.

        Never blocks.
        """
        self._called_off = True
        stage = self._stage
        if stage is not None:
            stage.abandon()

    def close(self) -> None:
        """Ends a preparation under way, leaves the ring, frees every window. Idempotent."""
        self.call_off()
        with self._lock:
            self._leave()
            self._keep_windows(set())

    # ---- within

    def _prepare(self, assignment: Assignment, report: Report) -> None:
        plan = assignment.plan
        manifest = Manifest.unpack(assignment.manifest)
        if manifest.id != plan.model:
            raise RingError("the plan is for another model than the manifest that came with it")
        with self._lock:
            self._give_up_if_overtaken(plan.epoch)
            self._leave()
            self._surroundings.learn(assignment)
            keys = {hop: _WindowKey.of(plan, plan.hops[hop]) for hop in plan.hops_of(self._device)}
            self._keep_windows(set(keys.values()))
            self._manifest = manifest
            self._bring(manifest, self._parts(manifest, plan), assignment, report)
            self._try(manifest, plan, report)
            placings = placings_of(plan, self._device, manifest)
            for number, (hop, key) in enumerate(keys.items()):
                self._give_up_if_overtaken(plan.epoch)
                report(Progress(stage="loading layers", device=self._name, done=number, total=len(keys)))
                self._load(manifest, key, placings[hop], plan.epoch)
            windows = {hop: self._windows[key] for hop, key in keys.items()}
            self._stage = self._join(assignment, windows)
            report(Progress(stage="ready", device=self._name, done=len(keys), total=len(keys), finished=True))

    def _hops(self, plan: Plan) -> list[Hop]:
        return [plan.hops[index] for index in plan.hops_of(self._device)]

    def _parts(self, manifest: Manifest, plan: Plan) -> tuple[Part, ...]:
        """What this device needs on its disk for its share of `plan`."""
        wanted: dict[str, Part] = {}
        for hop in self._hops(plan):
            wanted.update({part.name: part for part in manifest.parts_for(hop.first, hop.last)})
        if plan.head == self._device:
            wanted["vocab"] = manifest.by_name["vocab"]
        return tuple(wanted.values())

    def _bring(
        self, manifest: Manifest, parts: tuple[Part, ...], assignment: Assignment, report: Report
    ) -> None:
        self._remember(manifest)
        for part in parts:
            self._give_up_if_overtaken(assignment.plan.epoch)
            try:
                if self._catalogue.has(part.sha256):
                    self._catalogue.verify(part)
            except DamagedPartError as error:
                log.warning("%s", error.message)
        missing = self._catalogue.missing(parts)
        if not missing:
            return
        total = sum(part.size for part in missing)
        self._say(f"fetching {len(missing)} parts of {manifest.name}, {total / 1e6:.1f} MB")
        fetch_parts(
            missing,
            self._surroundings.sources(assignment.sources),
            self._catalogue,
            on_progress=lambda done: report(
                Progress(stage="fetching layers", device=self._name, done=done, total=total, unit="bytes")
            ),
            cancelled=lambda: self._called_off or self._latest != assignment.plan.epoch,
        )

    def _remember(self, manifest: Manifest) -> None:
        """Note the model; one of the same name gives way if this device only ran layers of it."""
        namesakes = [model for model in self._catalogue.models() if model.name == manifest.name]
        self._catalogue.add(manifest, replace=not any(map(self._catalogue.owns, namesakes)))

    def _try(self, manifest: Manifest, plan: Plan, report: Report) -> None:
        """A model that another device offers must not end this one, whatever is in it."""
        parts = {part.sha256 for part in self._parts(manifest, plan)}
        if not self._catalogue.owns(manifest) and not parts <= self._tried:
            report(Progress(stage="trying the model", device=self._name))
            self._try_model(manifest)
            self._tried |= parts

    def _load(self, manifest: Manifest, key: _WindowKey, placing: Placing, epoch: int) -> None:
        window = self._windows.get(key)
        if window is not None:
            window.apply(KvOp("clear"))
            self._place_window(window, placing)
            return
        source = compose(manifest, self._catalogue, key.first, key.last, fed=key.streams_output)
        self._windows[key] = self._load_window(
            source, key.context, placing, lambda _: self._give_up_if_overtaken(epoch)
        )

    def _join(self, assignment: Assignment, windows: dict[int, Window]) -> Stage | Ring:
        plan = assignment.plan

        def broken(error: EdgedError) -> None:
            if plan.head != self._device:
                self._say(f"the ring broke: {with_names(error.message, assignment.names)}")
            self._on_broken(plan.epoch, error)

        if plan.head == self._device:
            return Ring(plan, windows, self._transport, self._on_result, broken, self._window_failed)
        return Stage(plan, self._device, windows, self._transport, broken, on_failure=self._window_failed)

    def _window_failed(self, message: str) -> None:
        if message != self._last_failure:  # one that lasts is said once
            self._last_failure = message
            self._say(f"a request failed on this device: {message}")

    def _leave(self) -> None:
        if self._stage is not None:
            self._stage.close()
            self._stage = None

    def _keep_windows(self, keys: set[_WindowKey]) -> None:
        for key in [key for key in self._windows if key not in keys]:
            self._windows.pop(key).close()

    def _drop_other_layers(self, plan: Plan) -> None:
        """A device that does not own the whole model keeps only what it runs."""
        manifest = self._manifest
        if manifest is None or self._catalogue.owns(manifest):
            return
        freed = self._catalogue.keep_only(manifest, self._parts(manifest, plan))
        if freed:
            log.info("dropped %.1f MB of layers of %s that others run now", freed / 1e6, manifest.name)

    def _give_up_if_called_off(self) -> None:
        if self._called_off:
            raise RingError(f"{self._name} is stopping")

    def _give_up_if_overtaken(self, epoch: int) -> None:
        self._give_up_if_called_off()
        if self._latest != epoch:
            raise RingError(f"epoch {epoch} was overtaken by epoch {self._latest}")
