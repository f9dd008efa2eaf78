"""What every transport must do, run over both of them."""

from __future__ import annotations

import threading
from queue import Queue

import numpy as np
import pytest

from edged.errors import EdgedError, FrameError, RingBrokenError, RingError
from edged.ring.codec import FrameFormat, encode
from edged.ring.frame import EMPTY_BATCH, Frame
from edged.ring.outbox import Outbox
from tests.ring.fakes import run_of

FORM = FrameFormat(width=64, max_tokens=16, n_seq_max=4, n_ctx=1000, wire="f32")
WAIT = 20


class Recorder:
    """An endpoint that keeps what it gets, and can be held up."""

    def __init__(self, epoch: int = 7, form: FrameFormat = FORM, predecessors=(("a", 1),)) -> None:
        self.epoch, self.form = epoch, form
        self._predecessors = predecessors
        self.frames: Queue[Frame] = Queue()
        self.losses: Queue[EdgedError] = Queue()
        self.gate = threading.Event()
        self.gate.set()

    def expects(self, sender: str, hop: int | None = None) -> bool:
        return any(sender == name and hop in (None, at) for name, at in self._predecessors)

    def receive(self, frame: Frame, sender: str) -> None:
        self.gate.wait()
        self.frames.put(frame)

    def lost(self, sender: str, error: EdgedError) -> None:
        self.losses.put(error)


class RawOutbox(Outbox):
    """Yields the bytes it was given, whatever they are."""

    def __init__(self, *raws: bytes) -> None:
        super().__init__(FORM, 4)
        self._raws = raws
        self.go = threading.Event()

    def __iter__(self):
        self.go.wait(WAIT)
        yield from self._raws
        yield from super().__iter__()  # waits for the link to end


def frame(number: int, form: FrameFormat = FORM, n: int = 1, hop: int = 1, epoch: int = 7) -> Frame:
    rows = np.full((n, form.width), number, np.float32)
    return Frame(epoch, hop, number, (), run_of(0, 0, n), rows)


@pytest.fixture
def ends(wires):
    """Transports of a and b, an endpoint on b, and what a's link reported."""
    a, b = wires.transport("a"), wires.transport("b")
    broken: Queue[EdgedError] = Queue()
    yield a, b, broken
    b.detach(7)


def test_frames_arrive_in_order_and_whole(ends):
    a, b, broken = ends
    there = Recorder()
    b.attach(there)
    link = a.connect("b", 7, FORM, 8, broken.put)
    for number in range(300):
        link.send(frame(number, n=1 + number % 3))
    for number in range(300):
        got = there.frames.get(timeout=WAIT)
        assert got.batch_id == number
        assert np.array_equal(got.hidden, np.full((1 + number % 3, 64), number, np.float32))
    link.close()
    assert sum(link.bytes_sent.values()) > 300 * 64 * 4
    assert set(link.bytes_sent) == {1}
    assert broken.empty()


def test_big_frames(ends):
    a, b, broken = ends
    form = FrameFormat(width=8192, max_tokens=512, n_seq_max=1, n_ctx=512, wire="f32")
    there = Recorder(form=form)
    b.attach(there)
    link = a.connect("b", 7, form, 2, broken.put)
    values = np.random.default_rng(0).standard_normal((512, 8192), np.float32)
    for number in range(3):
        link.send(Frame(7, 1, number, (), run_of(0, 0, 512), values))
    for number in range(3):
        got = there.frames.get(timeout=WAIT)
        assert got.batch_id == number
        assert np.array_equal(got.hidden, values)
    link.close()


def test_a_slow_receiver_holds_up_the_sender_and_loses_nothing(ends):
    a, b, broken = ends
    form = FrameFormat(width=65536, max_tokens=8, n_seq_max=1, n_ctx=512, wire="f32")
    there = Recorder(form=form)
    there.gate.clear()
    b.attach(there)
    link = a.connect("b", 7, form, 2, broken.put)
    sent = []

    def send() -> None:
        for number in range(40):  # 2 MiB each: more than any socket buffer takes
            link.send(frame(number, form, n=8))
            sent.append(number)

    sender = threading.Thread(target=send)
    sender.start()
    sender.join(0.3)
    assert sender.is_alive()
    assert len(sent) < 40
    there.gate.set()
    assert [there.frames.get(timeout=WAIT).batch_id for _ in range(40)] == list(range(40))
    sender.join(WAIT)
    link.close()
    assert broken.empty()


def test_close_sends_what_waits(ends):
    a, b, broken = ends
    there = Recorder()
    b.attach(there)
    link = a.connect("b", 7, FORM, 64, broken.put)
    for number in range(50):
        link.send(frame(number))
    link.close()
    assert [there.frames.get(timeout=WAIT).batch_id for _ in range(50)] == list(range(50))
    assert isinstance(there.losses.get(timeout=WAIT), RingBrokenError)
    with pytest.raises(RingBrokenError):
        link.send(frame(50))
    link.close()
    assert broken.empty()


def test_close_does_not_wait_for_a_receiver_that_hangs(ends):
    a, b, broken = ends
    there = Recorder()
    there.gate.clear()
    b.attach(there)
    link = a.connect("b", 7, FORM, 4, broken.put)
    link.send(frame(0))
    link.send(frame(1))
    closing = threading.Thread(target=link.close)
    closing.start()
    if type(link).__name__ == "MemoryLink":  # its thread is the receiver's: it must be let go
        there.gate.set()
    closing.join(WAIT)
    assert not closing.is_alive()
    there.gate.set()
    assert broken.empty()


def test_a_sender_that_waits_for_room_is_let_go_when_the_link_is_abandoned(ends):
    a, b, broken = ends
    form = FrameFormat(width=65536, max_tokens=8, n_seq_max=1, n_ctx=512, wire="f32")
    there = Recorder(form=form)
    there.gate.clear()
    b.attach(there)
    link = a.connect("b", 7, form, 1, broken.put)
    ended: Queue[BaseException] = Queue()

    def send() -> None:
        try:
            while True:
                link.send(frame(0, form, n=8))
        except RingBrokenError as error:
            ended.put(error)

    senders = [threading.Thread(target=send) for _ in range(3)]
    for sender in senders:
        sender.start()
    senders[0].join(0.2)
    link.abandon()
    for sender in senders:
        sender.join(WAIT)
        assert not sender.is_alive()
    assert ended.qsize() == 3
    there.gate.set()
    link.close()
    assert isinstance(there.losses.get(timeout=WAIT), RingBrokenError)
    assert broken.empty()


def test_both_ends_notice_a_cut_cable(wires, ends):
    a, b, broken = ends
    there = Recorder()
    b.attach(there)
    link = a.connect("b", 7, FORM, 8, broken.put)
    link.send(frame(0))
    there.frames.get(timeout=WAIT)
    wires.cut("a", "b")
    assert isinstance(broken.get(timeout=WAIT), RingBrokenError)
    assert isinstance(there.losses.get(timeout=WAIT), RingBrokenError)
    with pytest.raises(RingBrokenError):
        for number in range(20):
            link.send(frame(number))
    link.close()
    assert broken.empty()
    assert there.losses.empty()


def test_the_sender_notices_that_the_receiver_left(ends):
    a, b, broken = ends
    there = Recorder()
    b.attach(there)
    link = a.connect("b", 7, FORM, 8, broken.put)
    b.detach(7)
    assert isinstance(broken.get(timeout=WAIT), RingBrokenError)
    assert there.losses.empty()
    link.close()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff\xff\xff\xff",
        b"not a frame at all",
        encode(frame(0), FORM)[:-1],
        encode(frame(0, hop=2), FORM),
        b"\0" * (FORM.max_bytes + 1),
    ],
    ids=["empty", "ones", "text", "cut", "hop of another", "too long"],
)
def test_garbage_is_refused_and_both_ends_are_told(wires, ends, raw):
    _, b, broken = ends
    there = Recorder()
    b.attach(there)
    outbox = RawOutbox(encode(frame(0), FORM), raw)
    link = wires.link("a", "b", 7, outbox, broken.put)
    outbox.go.set()
    assert isinstance(there.losses.get(timeout=WAIT), FrameError)
    assert isinstance(broken.get(timeout=WAIT), RingBrokenError)
    assert there.frames.qsize() == 1
    link.close()


def test_only_predecessors_get_in(ends):
    a, b, broken = ends
    b.attach(Recorder(predecessors=(("c", 1),)))
    with pytest.raises(RingBrokenError, match="a does not precede this device"):
        a.connect("b", 7, FORM, 8, broken.put)
    assert broken.empty()


def test_an_epoch_that_is_not_open_is_refused(ends):
    a, b, broken = ends
    b.attach(Recorder())
    with pytest.raises(RingBrokenError, match="no ring of epoch 8"):
        a.connect("b", 8, FORM, 8, broken.put)
    assert broken.empty()


def test_a_second_stream_of_one_sender_is_refused(ends):
    a, b, broken = ends
    b.attach(Recorder())
    link = a.connect("b", 7, FORM, 8, broken.put)
    with pytest.raises(RingBrokenError, match="already"):
        a.connect("b", 7, FORM, 8, broken.put)
    link.close()


def test_an_epoch_is_attached_once_and_again_after_detach(ends):
    _, b, _ = ends
    b.attach(Recorder())
    with pytest.raises(RingError, match="open here already"):
        b.attach(Recorder())
    b.detach(7)
    b.detach(7)
    b.attach(Recorder())


def test_an_unreachable_device_is_one_clear_line(wires, ends):
    a, b, broken = ends
    b.attach(Recorder())
    a.connect("b", 7, FORM, 8, broken.put).close()
    wires.cut("a", "b")
    if not hasattr(wires, "_cables"):
        with pytest.raises(RingBrokenError, match="no device c"):
            a.connect("c", 7, FORM, 8, broken.put)
        return
    with pytest.raises(RingBrokenError, match="cannot open the ring's link to b") as caught:
        a.connect("b", 7, FORM, 8, broken.put)
    assert "\n" not in str(caught.value)


def test_a_frame_that_does_not_fit_is_the_senders_error(ends):
    a, b, broken = ends
    there = Recorder()
    b.attach(there)
    link = a.connect("b", 7, FORM, 8, broken.put)
    with pytest.raises(FrameError):
        link.send(Frame(7, 1, 0, (), run_of(0, 0, 2), np.zeros((2, 63), np.float32)))
    link.send(Frame(7, 1, 1, (), EMPTY_BATCH, np.zeros((0, 64), np.float32)))
    assert there.frames.get(timeout=WAIT).batch_id == 1
    link.close()
