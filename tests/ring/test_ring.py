"""Rings of made-up windows against one window of all layers: the logits must agree bit for bit."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from queue import Queue

import numpy as np
import pytest

from edged.backend.window import KvOp
from edged.errors import FrameError, MisconductError, RingBrokenError, RingError, WindowError
from edged.planning.plan import Plan
from edged.ring.frame import EMPTY_BATCH, Frame
from edged.ring.ring import Result, Ring
from edged.ring.stage import Stage, ring_depth
from tests.ring.fakes import (
    N_VOCAB,
    WIDTH,
    NotedWindow,
    Sink,
    batch_of,
    plan_of,
    run_of,
    tokens_of,
    windows_of,
)

WAIT = 20
NO_TOKENS = tokens_of()

SHAPES = {
    "one": [("a", 6)],
    "one, two windows": [("a", 3), ("a", 3)],
    "two": [("a", 2), ("b", 3), ("a", 1)],
    "three": [("a", 1), ("b", 2), ("c", 2), ("a", 1)],
    "three, two rounds": [("a", 1), ("b", 1), ("c", 1), ("a", 1), ("b", 1), ("c", 1), ("a", 1)],
    "two, neighbours on one device": [("a", 1), ("b", 1), ("b", 2), ("a", 2)],
}


class Cluster:
    """All stages of a plan, in this process."""

    def __init__(self, wires, plan: Plan, window=NotedWindow) -> None:
        self.plan = plan
        self.results: Queue[Result] = Queue()
        self.broken: Queue[Exception] = Queue()
        self.windows = windows_of(plan, window)
        self.transports = {device: wires.transport(device) for device in plan.devices}
        self.others = {
            device: Stage(plan, device, self._of(device), self.transports[device], self.broken.put)
            for device in plan.devices[1:]
        }
        head = plan.head
        self.ring = Ring(plan, self._of(head), self.transports[head], self.results.put, self.broken.put)
        self._numbers = iter(range(10**6))

    def _of(self, device: str) -> dict[int, NotedWindow]:
        return {hop: self.windows[hop] for hop in self.plan.hops_of(device)}

    def connect(self) -> Cluster:
        for stage in self.others.values():
            stage.connect()
        self.ring.connect()
        return self

    def submit(self, batch, tokens, ops=()) -> int:
        number = next(self._numbers)
        self.ring.submit(number, tuple(ops), batch, tokens)
        return number

    def run(self, batch, tokens, ops=()) -> Result:
        number = self.submit(batch, tokens, ops)
        result = self.results.get(timeout=WAIT)
        assert result.batch_id == number
        return result

    def close(self) -> None:
        self.ring.close()
        for stage in self.others.values():
            stage.close()


@pytest.fixture
def cluster(wires):
    with ExitStack() as stack:

        def make(*hops, window=NotedWindow, **context) -> Cluster:
            made = Cluster(wires, plan_of(*hops, **context), window)
            stack.callback(made.close)
            return made.connect()

        yield make


class Gated(NotedWindow):
    """Computes when it is let; shared by all windows of a test."""

    gate = threading.Event()
    reached = threading.Event()

    def _compute(self, batch, inputs):
        self.reached.set()
        self.gate.wait(WAIT)
        return super()._compute(batch, inputs)


@pytest.fixture
def gated():
    Gated.gate.clear()
    Gated.reached.clear()
    yield Gated
    Gated.gate.set()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_a_ring_gives_the_logits_of_the_whole_model(cluster, shape):
    ring = cluster(*shape)
    whole = NotedWindow(0, ring.plan.n_layers, ring.plan.n_layers, ring.plan.context)
    rng = np.random.default_rng(3)
    at, sent = dict.fromkeys(range(8), 0), []
    for number in range(60):  # prompt chunks and single steps of eight sequences, all in flight at once
        ops = []
        if number % 3 == 0:
            seq, n = int(rng.integers(8)), int(rng.integers(1, 9))
            batch = run_of(seq, at[seq], n)
            at[seq] += n
        elif number % 10 == 1:
            seq = int(rng.integers(8))
            keep = int(rng.integers(at[seq] + 1))
            ops = [KvOp("remove", seq, 0, keep, -1), KvOp("copy", seq, (seq + 1) % 8)]
            at[seq] = at[(seq + 1) % 8] = keep
            batch = run_of(seq, keep, 2)
            at[seq] += 2
        else:
            rows = [(seq, at[seq]) for seq in range(int(rng.integers(1, 8)))]
            for seq, _ in rows:
                at[seq] += 1
            batch = batch_of(*rows)
        tokens = rng.integers(0, N_VOCAB, batch.n_tokens).astype(np.int32)
        sent.append((ring.submit(batch, tokens, ops), batch, tokens, ops))
    for batch_id, batch, tokens, ops in sent:
        result = ring.results.get(timeout=WAIT)
        assert result.error is None
        assert result.batch_id == batch_id
        for op in ops:
            whole.apply(op)
        assert result.logits.tobytes() == whole.run_last(batch, tokens).tobytes()
    assert ring.ring.in_flight == 0
    for window in ring.windows:
        for layer, cells in zip(window.cells, whole.cells[window.first :], strict=False):
            for sequence, expected in zip(layer, cells, strict=True):
                assert {at: row.tobytes() for at, row in sequence.items()} == {
                    at: row.tobytes() for at, row in expected.items()
                }


def test_batches_without_outputs_and_without_tokens_are_answered(cluster):
    ring = cluster(*SHAPES["three"])
    assert ring.run(batch_of((0, 0), (0, 1), outputs=False), tokens_of(1, 2)).logits.shape == (0, N_VOCAB)
    result = ring.run(EMPTY_BATCH, NO_TOKENS, [KvOp("clear")])
    assert result.error is None
    assert result.logits.shape[0] == 0
    assert not any(any(layer) for window in ring.windows for layer in window.cells)


def test_every_hop_applies_the_same_operations_in_the_same_order(cluster):
    ring = cluster(*SHAPES["three, two rounds"])
    ops = [KvOp("copy", 0, seq) for seq in range(1, 30)]
    ring.submit(run_of(0, 0, 3), tokens_of(1, 2, 3))
    for op in ops:
        ring.submit(batch_of((op.target, 3)), tokens_of(4), [op])
    assert all(ring.results.get(timeout=WAIT).error is None for _ in range(30))
    for window in ring.windows:
        assert window.applied == ops


@pytest.mark.parametrize("where", range(4))
def test_a_window_that_fails_fails_its_batch_only(cluster, where):
    ring = cluster(*SHAPES["three"])
    whole = NotedWindow(0, 6, 6, ring.plan.context)
    first = run_of(0, 0, 3)
    assert ring.run(first, tokens_of(1, 2, 3)).error is None
    whole.run_last(first, tokens_of(1, 2, 3))
    ring.windows[where].apply(KvOp("copy", 0, 5))  # this hop alone disagrees on 5
    result = ring.run(batch_of((5, 0)), tokens_of(1), [KvOp("copy", 0, 7)])
    assert isinstance(result.error, WindowError)
    assert "sequence 5" in result.error.message
    assert result.failure.device == ring.plan.hops[where].device
    assert result.logits is None
    # The operation in the failed frame has been made on every hop, behind the failure too.
    assert all(len(window.cells[0][7]) == 3 for window in ring.windows)
    step = batch_of((0, 3))
    assert ring.run(step, tokens_of(4)).logits.tobytes() == whole.run_last(step, tokens_of(4)).tobytes()
    failures = [hop.failures for stage in (ring.ring, *ring.others.values()) for hop in stage.stats().hops]
    assert sum(failures) == 1


def test_what_a_window_should_not_raise_is_a_failure_too(cluster):
    class Faulty(NotedWindow):
        def run(self, batch, inputs):
            if self.first == 1 and inputs.shape[0] == 2:
                raise ZeroDivisionError("oh")
            if self.first == 1 and inputs.shape[0] == 3:
                return np.zeros((3, WIDTH + 1), np.float32)
            return super().run(batch, inputs)

    ring = cluster(*SHAPES["three"], window=Faulty)
    assert "oh" in ring.run(run_of(0, 0, 2), tokens_of(1, 1)).error.message
    ring.run(EMPTY_BATCH, NO_TOKENS, [KvOp("clear")])
    assert isinstance(ring.run(run_of(0, 0, 3), tokens_of(1, 1, 1)).error, FrameError)
    ring.run(EMPTY_BATCH, NO_TOKENS, [KvOp("clear")])
    assert ring.run(batch_of((0, 0)), tokens_of(1)).error is None


def test_an_operation_that_a_model_cannot_do_is_a_failure(cluster):
    class Recurrent(NotedWindow):
        def __init__(self, first, last, n_layers, context) -> None:
            super().__init__(first, last, n_layers, context, recurrent=first == 3)

    ring = cluster(*SHAPES["three"], window=Recurrent)
    assert ring.run(run_of(0, 0, 2), tokens_of(1, 2)).error is None
    result = ring.run(batch_of((0, 1)), tokens_of(1), [KvOp("remove", 0, 0, 1), KvOp("copy", 0, 1)])
    assert result.error.message == "this model cannot remove cached tokens of sequence 0"
    assert result.failure.device == "c"
    assert all([op.kind for op in window.applied] == ["remove", "copy"] for window in ring.windows)


def test_frames_of_an_old_epoch_are_dropped_and_counted(cluster):
    ring = cluster(*SHAPES["two"], epoch=7)
    stage = ring.others["b"]
    stage.receive(Frame(6, 1, 5, (KvOp("clear"),), batch_of((0, 0)), np.zeros((1, WIDTH), np.float32)), "a")
    assert ring.run(batch_of((0, 0)), tokens_of(1)).error is None
    assert stage.stats().dropped == 1
    assert ring.windows[1].applied == []
    assert ring.ring.stats().dropped == 0


def test_a_frame_of_an_epoch_to_come_is_refused(cluster):
    stage = cluster(*SHAPES["two"]).others["b"]
    with pytest.raises(FrameError, match="epoch to come"):
        stage.receive(Frame(99, 1, 5, (), batch_of((0, 0)), np.zeros((1, WIDTH), np.float32)), "a")


def test_a_result_that_nobody_asked_for_breaks_the_ring_and_names_the_offender(cluster):
    ring = cluster(*SHAPES["two"])
    last = len(ring.ring.plan.hops) - 1
    forged = Frame(ring.ring.plan.epoch, last, 12345, (), EMPTY_BATCH, np.zeros((0, WIDTH), np.float32))
    ring.others["b"]._forward(forged)
    errors = [ring.broken.get(timeout=WAIT) for _ in range(2)]  # the neighbour only sees that the head left
    assert [error.device for error in errors if isinstance(error, MisconductError)] == ["b"]


def test_a_batch_that_does_not_fit_is_refused_at_the_entry(cluster):
    ring = cluster(*SHAPES["two"])
    with pytest.raises(FrameError, match="takes 16 at once"):
        ring.submit(run_of(0, 0, 17), NO_TOKENS)
    with pytest.raises(FrameError, match="sequence out of range"):
        ring.submit(EMPTY_BATCH, NO_TOKENS, [KvOp("keep", 32)])
    ring.ring.submit(-1 % 2**63, (), batch_of((0, 0)), tokens_of(1))
    assert ring.results.get(timeout=WAIT).error is None


def test_a_batch_id_is_used_once_at_a_time(cluster, gated):
    ring = cluster(*SHAPES["two"], window=gated)
    ring.ring.submit(1, (), batch_of((0, 0)), tokens_of(1))
    with pytest.raises(RingError, match="batch 1 is in the ring already"):
        ring.ring.submit(1, (), batch_of((0, 1)), tokens_of(1))
    gated.gate.set()
    assert ring.results.get(timeout=WAIT).batch_id == 1


def test_a_broken_link_fails_every_batch_in_flight(wires, cluster, gated):
    ring = cluster(*SHAPES["three"], window=gated)
    sent = [ring.submit(batch_of((0, n)), tokens_of(1)) for n in range(40)]
    assert gated.reached.wait(WAIT)
    wires.cut("b", "c")  # a link that the head is no end of
    results = [ring.results.get(timeout=WAIT) for _ in sent]
    assert [result.batch_id for result in results] == sent
    assert all(isinstance(result.error, RingBrokenError) for result in results)
    for _ in ring.plan.devices:
        assert isinstance(ring.broken.get(timeout=WAIT), RingBrokenError)
    with pytest.raises(RingBrokenError):
        ring.submit(batch_of((0, 50)), tokens_of(1))
    gated.gate.set()
    ring.close()
    assert ring.results.empty()
    assert ring.broken.empty()
    assert ring.ring.in_flight == 0


@pytest.mark.parametrize("device", ["b", "c"])
def test_a_device_that_leaves_breaks_the_ring(cluster, gated, device):
    ring = cluster(*SHAPES["three"], window=gated)
    sent = [ring.submit(batch_of((0, n)), tokens_of(1)) for n in range(5)]
    ring.others[device].close()
    for batch_id in sent:
        result = ring.results.get(timeout=WAIT)
        assert result.batch_id == batch_id
        assert isinstance(result.error, RingBrokenError)
    for _ in range(2):
        ring.broken.get(timeout=WAIT)
    assert ring.broken.empty()


def test_closing_in_the_middle_of_traffic(cluster):
    ring = cluster(*SHAPES["three, two rounds"])
    answers = []

    def traffic() -> None:
        try:
            for n in range(10**6):
                again = KvOp("remove", n % 8)
                answers.append(ring.submit(batch_of((n % 8, 0)), tokens_of(n % 11), [again]))
        except RingBrokenError:
            pass

    feeding = threading.Thread(target=traffic)
    feeding.start()
    for _ in range(10):
        assert ring.results.get(timeout=WAIT).error is None
    ring.ring.close()
    feeding.join(WAIT)
    assert not feeding.is_alive()
    rest = [ring.results.get_nowait() for _ in range(ring.results.qsize())]
    assert 10 + len(rest) == len(answers)
    ring.ring.close()
    for _ in ring.others:
        assert isinstance(ring.broken.get(timeout=WAIT), RingBrokenError)


def test_closing_finishes_the_compute_in_progress(cluster, gated):
    ring = cluster(("a", 6), window=gated)
    ring.submit(batch_of((0, 0)), tokens_of(1))
    ring.submit(batch_of((0, 1)), tokens_of(1))
    assert gated.reached.wait(WAIT)
    closing = threading.Thread(target=ring.ring.close)
    closing.start()
    for _ in range(2):
        assert isinstance(ring.results.get(timeout=WAIT).error, RingBrokenError)
    assert closing.is_alive()
    gated.gate.set()
    closing.join(WAIT)
    assert not closing.is_alive()
    assert len(ring.windows[0].cells[0][0]) == 1  # the second batch was not begun


def test_close_may_be_called_from_the_result_callback(wires):
    plan = plan_of(*SHAPES["one"])
    done = threading.Event()

    def close(_: Result) -> None:
        ring.close()
        done.set()

    ring = Ring(plan, dict(enumerate(windows_of(plan))), wires.transport("a"), close, lambda _: None)
    ring.connect()
    ring.submit(0, (), batch_of((0, 0)), tokens_of(1))
    assert done.wait(WAIT)
    ring.close()


def test_a_ring_that_never_connected_closes(wires):
    plan = plan_of(*SHAPES["two"])
    failed: Queue[Result] = Queue()
    windows = dict(enumerate(windows_of(plan)))
    del windows[1]  # b's
    ring = Ring(plan, windows, wires.transport("a"), failed.put, print)
    ring.submit(4, (), batch_of((0, 0)), tokens_of(1))
    wires.transport("b")
    with pytest.raises(RingBrokenError, match="no ring of epoch 1 is open"):
        ring.connect()
    ring.close()
    assert failed.get_nowait().batch_id == 4


def test_epochs_follow_each_other_on_the_same_devices(wires):
    first = Cluster(wires, plan_of(*SHAPES["two"], epoch=1)).connect()
    assert first.run(batch_of((0, 0)), tokens_of(1)).error is None
    plan = plan_of(*SHAPES["two"], epoch=2)
    second: Queue[Result] = Queue()
    windows = windows_of(plan)
    stage = Stage(plan, "b", {1: windows[1]}, first.transports["b"], lambda _: None)
    ring = Ring(plan, {0: windows[0], 2: windows[2]}, first.transports["a"], second.put, lambda _: None)
    first.close()
    stage.connect()
    ring.connect()
    ring.submit(0, (), batch_of((0, 0)), tokens_of(1))
    assert second.get(timeout=WAIT).error is None
    ring.close()
    stage.close()


def test_later_hops_go_first_and_a_hop_keeps_its_order(wires, gated):
    plan = plan_of(("a", 1), ("b", 1), ("a", 1), ("b", 1), ("a", 1))
    order: list[tuple[int, int]] = []

    class Noting(gated):
        def run(self, batch, inputs):
            hidden = super().run(batch, inputs)
            order.append((self.first, int(batch.seq_ids[0])))
            return hidden

    windows = windows_of(plan, Noting)

    a, b = wires.transport("a"), wires.transport("b")
    a.attach(Sink())
    stage = Stage(plan, "b", {1: windows[1], 3: windows[3]}, b, lambda _: None)
    stage.connect()

    def send(number: int, hop: int) -> None:
        rows = np.zeros((1, WIDTH), np.float32)
        stage.receive(Frame(1, hop, number, (), batch_of((number, 0)), rows), "a")

    send(0, 1)
    assert gated.reached.wait(WAIT)
    for number, hop in enumerate([1, 3, 1, 3], start=1):
        send(number, hop)
    gated.gate.set()
    for _ in range(5):
        Sink.frames.get(timeout=WAIT)
    assert order == [(1, 0), (3, 2), (3, 4), (1, 1), (1, 3)]
    stats = stage.stats()
    assert [(hop.hop, hop.frames, hop.tokens) for hop in stats.hops] == [(1, 3, 3), (3, 2, 2)]
    assert all(hop.compute_s > 0 and hop.queue_wait_s > 0 for hop in stats.hops)
    assert all(hop.bytes_sent > hop.frames * WIDTH * 4 for hop in stats.hops)
    stage.close()
    a.detach(1)


def test_a_sender_that_ignores_the_ring_depth_is_refused(wires, gated):
    plan = plan_of(*SHAPES["two"])
    wires.transport("a")
    stage = Stage(plan, "b", {1: windows_of(plan, gated)[1]}, wires.transport("b"), lambda _: None)
    frame = Frame(1, 1, 0, (), batch_of((0, 0)), np.zeros((1, WIDTH), np.float32))
    with pytest.raises(FrameError, match="more frames than"):
        for _ in range(1000):
            stage.receive(frame, "a")
    stage.close()


def test_frames_that_the_stage_has_looked_at_count_too(wires):
    """Each visit empties the queue of arrivals: what waits behind it must not grow with that."""
    step, reached = threading.Semaphore(0), threading.Semaphore(0)

    class Stepped(NotedWindow):
        def run(self, batch, inputs):
            reached.release()
            step.acquire(timeout=WAIT)
            return super().run(batch, inputs)

    plan = plan_of(*SHAPES["two"])
    a = wires.transport("a")
    a.attach(Sink())
    stage = Stage(plan, "b", {1: windows_of(plan, Stepped)[1]}, wires.transport("b"), lambda _: None)
    stage.connect()
    numbers = iter(range(1000))

    def send(count: int) -> None:
        for _ in range(count):
            number = next(numbers)
            frame = Frame(1, 1, number, (), batch_of((0, number)), np.zeros((1, WIDTH), np.float32))
            stage.receive(frame, "a")

    send(1)
    assert reached.acquire(timeout=WAIT)
    send(ring_depth(plan))
    step.release()
    assert reached.acquire(timeout=WAIT)  # the second is computed, the others were taken from the queue
    with pytest.raises(FrameError, match="more frames than"):
        send(ring_depth(plan))
    step.release(1000)
    stage.close()
    a.detach(1)
