from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import edged.rpc.edged_pb2 as pb
from edged.backend.window import Batch, KvOp
from edged.errors import FrameError
from edged.ring import codec
from edged.ring.codec import MAX_KV_OPS, FrameFormat, decode, encode, failed
from edged.ring.frame import EMPTY_BATCH, Failure, Frame
from edged.ring.wire import pack, packed_size, unpack

FORM = FrameFormat(width=40, max_tokens=8, n_seq_max=4, n_ctx=100, wire="f32")
WIRES = ("f32", "f16", "q8")
OPS = (
    KvOp("remove", 1, 0, 3, -1),
    KvOp("copy", 1, 2),
    KvOp("keep", 3),
    KvOp("clear"),
    KvOp("remove", 0, 0, 5, 9),
)


@contextmanager
def walked():
    """Small frames take the way of large ones."""
    small, codec.SMALL_BYTES = codec.SMALL_BYTES, -1
    try:
        yield
    finally:
        codec.SMALL_BYTES = small


def decode_either_way(raw: bytes) -> None:
    """Refused in one line, or a valid frame; both ways of reading agree on what they accept."""
    there = []
    for way in (nullcontext, walked):
        with way():
            try:
                there.append(decode(raw, FORM))
            except FrameError as error:
                assert "\n" not in error.message
    for each in there:
        FORM.check_frame(each)
        assert same(each, there[0])


def batch(n: int) -> Batch:
    return Batch(np.arange(n, dtype=np.int32) % 4, np.arange(n, dtype=np.int32) + 50, np.arange(n) % 2 == 0)


def frame(n: int = 3, ops: tuple[KvOp, ...] = OPS, form: FrameFormat = FORM) -> Frame:
    rows = np.random.default_rng(n).standard_normal((n, form.width)).astype(np.float32)
    return Frame(epoch=2**40, hop=3, batch_id=2**50, kv_ops=ops, batch=batch(n), hidden=rows)


def same(a: Frame, b: Frame) -> bool:
    return (
        (a.epoch, a.hop, a.batch_id, a.kv_ops, a.failure) == (b.epoch, b.hop, b.batch_id, b.kv_ops, b.failure)
        and np.array_equal(a.batch.seq_ids, b.batch.seq_ids)
        and np.array_equal(a.batch.positions, b.batch.positions)
        and np.array_equal(a.batch.outputs, b.batch.outputs)
        and a.hidden.shape == b.hidden.shape
        and a.hidden.tobytes() == b.hidden.tobytes()
    )


@pytest.mark.parametrize("way", [nullcontext, walked])
@pytest.mark.parametrize("n", range(9))
def test_f32_round_trip_is_exact(n, way):
    with way():
        there = decode(encode(frame(n), FORM), FORM)
    assert same(there, frame(n))
    assert there.hidden.dtype == np.float32
    assert there.hidden.flags.c_contiguous
    assert there.hidden.flags.aligned
    assert there.batch.seq_ids.dtype == np.int32
    assert there.batch.outputs.dtype == np.bool_


@given(hnp.arrays(np.uint32, (3, 40)))
def test_f32_keeps_every_bit_pattern(bits):
    there = decode(encode(replace(frame(3), hidden=bits.view(np.float32)), FORM), FORM)
    assert there.hidden.tobytes() == bits.tobytes()


def test_a_frame_that_is_not_contiguous_is_sent_as_it_looks():
    wide = np.random.default_rng(0).standard_normal((3, 80)).astype(np.float32)
    sent = replace(frame(3), hidden=wide[:, ::2])
    assert np.array_equal(decode(encode(sent, FORM), FORM).hidden, wide[:, ::2])


@pytest.mark.parametrize("wire", WIRES)
def test_control_frames_and_failures(wire):
    form = replace(FORM, wire=wire)
    control = replace(frame(0), batch=EMPTY_BATCH)
    assert same(decode(encode(control, form), form), control)
    lost = failed(frame(3), Failure("window_error", "no more\nroom ü", "nas"))
    there = decode(encode(lost, form), form)
    assert there.failure == Failure("window_error", "no more room ü", "nas")
    assert there.batch.n_tokens == 0
    assert there.kv_ops == OPS
    long = failed(frame(3), Failure("window_error", "ü" * 10**5, "nas"))
    assert decode(encode(long, form), form).failure.message.startswith("üüü")


@pytest.mark.parametrize("width", [1, 31, 32, 33, 40, 576])
def test_f16_and_q8_are_within_their_step(width):
    rng = np.random.default_rng(width)
    rows = (rng.standard_normal((5, width)) * np.exp(rng.standard_normal((5, 1)) * 4)).astype(np.float32)
    rows[2] = 0
    for wire in WIRES:
        packed = pack(rows, wire)
        assert len(packed) == packed_size(5, width, wire)
        back = unpack(bytes(packed), 5, width, wire)
        assert back.shape == rows.shape
        assert back.dtype == np.float32
        for start in range(0, width, 32):
            block, got = rows[:, start : start + 32], back[:, start : start + 32]
            step = np.abs(block).max(axis=1, keepdims=True) / (127 * 2)
            limit = {"f32": 0 * step, "f16": np.abs(block) * 2**-11 + 2**-24, "q8": step * 1.001}[wire]
            assert (np.abs(block - got) <= limit).all()


def test_values_beyond_f16_are_clamped_and_what_is_not_finite_stays_so_in_q8():
    rows = np.array([[1e9, -1e9, 1.0, 2.0]], np.float32)
    assert unpack(bytes(pack(rows, "f16")), 1, 4, "f16").tolist() == [[65504.0, -65504.0, 1.0, 2.0]]
    rows = np.array([[np.nan, 1.0], [np.inf, 1.0], [1.0, 2.0]], np.float32)
    back = unpack(bytes(pack(rows, "q8")), 3, 2, "q8")
    assert not np.isfinite(back[0]).any()
    assert not np.isfinite(back[1]).any()
    assert np.isfinite(back[2]).all()


def message(**changes) -> bytes:
    """A valid frame of two tokens, less or more what `changes` says."""
    fields = {
        "epoch": 1,
        "hop": 1,
        "batch": 1,
        "seq_ids": [0, 1],
        "positions": [5, 6],
        "outputs": b"\0\1",
        "width": 40,
        "activations": bytes(2 * 40 * 4),
    }
    return pb.Frame(**(fields | changes)).SerializeToString()


def test_the_message_the_refusals_start_from_is_valid():
    assert decode(message(), FORM).batch.n_tokens == 2


@pytest.mark.parametrize("way", [nullcontext, walked])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seq_ids": [0]}, "1 sequence ids, 2 positions"),
        ({"positions": [1, 2, 3]}, "3 positions"),
        ({"outputs": b"\0"}, "1 output flags"),
        ({"outputs": b"\0\2"}, "neither 0 nor 1"),
        ({"seq_ids": [0, 4]}, "sequence out of range"),
        ({"seq_ids": [0, -1]}, "sequence out of range"),
        ({"positions": [5, 100]}, "position out of range"),
        ({"positions": [-1, 5]}, "position out of range"),
        ({"width": 41}, "width 41"),
        ({"width": 2**32 - 1}, "width 4294967295"),
        ({"wire_type": 2}, "wire type 2"),
        ({"wire_type": 99}, "wire type 99"),
        ({"activations": bytes(319)}, "319 bytes of activations"),
        ({"activations": b""}, "0 bytes of activations"),
        ({"kv_ops": [pb.KvOp(kind=9)]}, "unknown KV operation"),
        ({"kv_ops": [pb.KvOp(seq=4)]}, "KV remove of a sequence out of range"),
        ({"kv_ops": [pb.KvOp(kind=1, target=-1)]}, "KV copy of a sequence out of range"),
        ({"kv_ops": [pb.KvOp(p0=-1)]}, r"KV remove of \[-1, 0\)"),
        ({"kv_ops": [pb.KvOp(p1=101)]}, r"KV remove of \[0, 101\)"),
        ({"kv_ops": [pb.KvOp()] * (MAX_KV_OPS + 1)}, "more than 1024"),
        ({"kv_ops": [pb.KvOp()] * (MAX_KV_OPS + 100)}, "more than 1024|too many fields"),
        ({"failure": pb.Failure(message="x" * 5000)}, "more text"),
        (
            {"seq_ids": [0] * 9, "positions": [1] * 9, "outputs": bytes(9), "activations": bytes(9 * 160)},
            "takes 8 at once",
        ),
    ],
)
def test_what_contradicts_itself_or_the_ring_is_refused(changes, words, way):
    with way(), pytest.raises(FrameError, match=words) as caught:
        decode(message(**changes), FORM)
    assert "\n" not in caught.value.message


def test_protobuf_tricks_are_refused():
    twice = message() + pb.Frame(activations=bytes(320)).SerializeToString()
    with walked(), pytest.raises(FrameError, match="twice"):
        decode(twice, FORM)
    with pytest.raises(FrameError, match="at most"):
        decode(bytes(FORM.max_bytes + 1), FORM)
    big = replace(FORM, max_tokens=4096, width=1024)
    with pytest.raises(FrameError, match="too many fields"):
        decode(b"\x22\x00" * 10**6, big)  # a million empty KV operations
    with pytest.raises(FrameError, match="besides its activations"):
        decode(pb.Frame(seq_ids=[0] * 10**6).SerializeToString(), big)
    decode_either_way(b"\x52" + b"\xff" * 9 + b"\x01")  # activations of 2^64 bytes
    with pytest.raises(FrameError):
        decode(b"\x52" + b"\xff" * 9 + b"\x01", FORM)


@settings(max_examples=400)
@given(st.binary(max_size=400))
def test_garbage_is_refused(raw):
    decode_either_way(raw)


@settings(max_examples=400)
@given(st.data())
def test_damaged_frames_are_refused_or_valid(data):
    raw = bytearray(encode(frame(data.draw(st.integers(0, 4))), FORM))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
        if not raw:
            break
    decode_either_way(bytes(raw))


def test_wire_numbers_are_those_of_the_protocol():
    for number, wire in enumerate(WIRES):
        form = replace(FORM, wire=wire)
        assert pb.WireType.Name(pb.Frame.FromString(encode(frame(1), form)).wire_type) == wire.upper()
        assert number == pb.WireType.Value(wire.upper())
    ops = pb.Frame.FromString(encode(frame(1), FORM)).kv_ops
    assert [pb.KvOp.Kind.Name(op.kind).lower() for op in ops] == [op.kind for op in OPS]


def test_the_bytes_are_plain_protobuf():
    sent = frame(3)
    read = pb.Frame.FromString(encode(sent, FORM))
    assert read.activations == sent.hidden.tobytes()
    assert list(read.positions) == sent.batch.positions.tolist()
    assert same(decode(read.SerializeToString(), FORM), sent)
