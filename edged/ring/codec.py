"""Frame <-> bytes (protobuf `Frame`), strict in both directions.

A frame comes from another machine. The bytes of a large one are walked before protobuf sees them: the walk
bounds what parsing may allocate, and finds the activations in place, so that they are not copied. A small
one, such as a single token's, is bounded by its size, and parsed at once: its hop is counted in microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

import edged.rpc.edged_pb2 as pb
from edged.backend.window import Batch, KvOp
from edged.errors import FrameError
from edged.planning.plan import Plan, WireType
from edged.ring.frame import EMPTY_BATCH, Failure, Frame
from edged.ring.wire import Bytes, pack, packed_size, unpack

MAX_KV_OPS = 1024  # in one frame; a head that lets go of all its sequences needs 64
MAX_TEXT = 2000  # bytes of each of a failure's three fields
HEADER_BYTES_PER_TOKEN = 16  # two varints of at most five bytes, the output flag, some air
HEADER_BYTES = MAX_KV_OPS * 40 + 3 * MAX_TEXT + 1024  # everything that does not grow with the tokens
SMALL_BYTES = 256 * 2**10  # parsing at most multiplies this by about fifty
FEW_TOKENS = 32  # below this a Python loop is faster than two numpy calls

_KINDS: tuple[Literal["remove", "copy", "keep", "clear"], ...] = ("remove", "copy", "keep", "clear")
_WIRES: tuple[WireType, ...] = get_args(WireType)
_ACTIVATIONS = pb.Frame.DESCRIPTOR.fields_by_name["activations"].number
_ACTIVATIONS_TAG = bytes([_ACTIVATIONS << 3 | 2])
_PLAIN_FIELDS = len(pb.Frame.DESCRIPTOR.fields)


@dataclass(frozen=True, slots=True)
class FrameFormat:
    """What frames of one ring look like; every device derives the same one from the plan."""

    width: int  # values per token
    max_tokens: int
    n_seq_max: int
    n_ctx: int
    wire: WireType

    @classmethod
    def of(cls, plan: Plan, width: int) -> FrameFormat:
        """`width` is the windows' own (Window.width)."""
        context = plan.context
        return cls(width, context.n_ubatch, context.n_seq_max, context.n_ctx, context.wire_type)

    @property
    def max_head(self) -> int:
        """Bytes of the longest frame, less its activations."""
        return self.max_tokens * HEADER_BYTES_PER_TOKEN + HEADER_BYTES

    @property
    def max_bytes(self) -> int:
        """No valid frame is longer."""
        return packed_size(self.max_tokens, self.width, self.wire) + self.max_head

    def check(self, kv_ops: Sequence[KvOp], batch: Batch) -> None:
        """Raises FrameError where a ring of this format has no room for these."""
        n = batch.n_tokens
        if n > self.max_tokens:
            raise FrameError(f"{n} tokens in a frame, but this ring takes {self.max_tokens} at once")
        if not batch.seq_ids.shape == batch.positions.shape == batch.outputs.shape == (n,):
            raise FrameError("a batch whose parts differ in length")
        if not _within(batch.seq_ids, self.n_seq_max):
            raise FrameError(f"a sequence out of range: this ring holds {self.n_seq_max}")
        if not _within(batch.positions, self.n_ctx):
            raise FrameError(f"a position out of range: this ring's context is {self.n_ctx}")
        if len(kv_ops) > MAX_KV_OPS:
            raise FrameError(f"{len(kv_ops)} KV operations in a frame, more than {MAX_KV_OPS}")
        for op in kv_ops:
            if not (0 <= op.seq < self.n_seq_max and 0 <= op.target < self.n_seq_max):
                raise FrameError(f"KV {op.kind} of a sequence out of range: this ring holds {self.n_seq_max}")
            if not (0 <= op.p0 <= self.n_ctx and -1 <= op.p1 <= self.n_ctx):
                raise FrameError(f"KV {op.kind} of [{op.p0}, {op.p1}) in a context of {self.n_ctx}")

    def check_frame(self, frame: Frame) -> None:
        """As `check`, for a whole frame; a frame that failed carries no tokens."""
        self.check(frame.kv_ops, frame.batch)
        if frame.hidden.shape != (frame.batch.n_tokens, self.width):
            raise FrameError(
                f"activations of shape {frame.hidden.shape} for {frame.batch.n_tokens} tokens of {self.width}"
            )
        if frame.hidden.dtype != np.float32:
            raise FrameError(f"activations of type {frame.hidden.dtype}, not float32")


def _within(values: npt.NDArray[np.int32], limit: int) -> bool:
    if values.size <= FEW_TOKENS:
        return all(0 <= value < limit for value in values.tolist())
    return bool(values.min() >= 0 and values.max() < limit)


def encode(frame: Frame, form: FrameFormat) -> bytes:
    """The frame as bytes. It must satisfy `form.check_frame`."""
    batch = frame.batch
    head = pb.Frame(
        epoch=frame.epoch,
        hop=frame.hop,
        batch=frame.batch_id,
        kv_ops=[
            pb.KvOp(kind=_KINDS.index(op.kind), seq=op.seq, target=op.target, p0=op.p0, p1=op.p1)
            for op in frame.kv_ops
        ],
        seq_ids=batch.seq_ids.tolist(),
        positions=batch.positions.tolist(),
        outputs=batch.outputs.tobytes(),
        wire_type=_WIRES.index(form.wire),
        width=form.width,
    )
    if frame.failure is not None:
        head.failure.code = _clip(frame.failure.code)
        head.failure.message = _clip(frame.failure.message)
        head.failure.device = _clip(frame.failure.device)
    if not batch.n_tokens:
        return bytes(head.SerializeToString())
    body = pack(frame.hidden, form.wire)
    # The activations are written behind the message instead of through it: one copy instead of three.
    return b"".join((head.SerializeToString(), _ACTIVATIONS_TAG, _varint(len(body)), body))


def decode(raw: bytes, form: FrameFormat) -> Frame:
    """The frame in `raw`. Raises FrameError where it is not a frame of this form."""
    if len(raw) > form.max_bytes:
        raise FrameError(f"a frame of {len(raw)} bytes, but this ring's are at most {form.max_bytes}")
    body: Bytes
    if len(raw) <= SMALL_BYTES:
        message = _parse(raw)
        body = message.activations
    else:
        head, body = _split(raw)
        if len(head) > form.max_head:
            raise FrameError(f"a frame with {len(head)} bytes besides its activations")
        message = _parse(head)
    if message.wire_type != _WIRES.index(form.wire):
        raise FrameError(f"a frame of wire type {message.wire_type}, but this ring uses {form.wire}")
    if message.width != form.width:
        raise FrameError(f"a frame of width {message.width}, but this ring's is {form.width}")
    batch = _batch(message)
    kv_ops = tuple(_kv_op(op) for op in message.kv_ops)
    form.check(kv_ops, batch)
    failure = _failure(message.failure) if message.HasField("failure") else None
    return Frame(
        epoch=message.epoch,
        hop=message.hop,
        batch_id=message.batch,
        kv_ops=kv_ops,
        batch=batch,
        hidden=unpack(body, batch.n_tokens, form.width, form.wire),
        failure=failure,
    )


def failed(frame: Frame, failure: Failure) -> Frame:
    """`frame` without its tokens, on its way to the head with `failure`. Its KV operations stay."""
    return replace(frame, batch=EMPTY_BATCH, hidden=frame.hidden[:0], failure=failure)


def _parse(raw: bytes) -> pb.Frame:
    try:
        return pb.Frame.FromString(raw)
    except DecodeError:
        raise FrameError("bytes that are no frame") from None


def _batch(message: pb.Frame) -> Batch:
    n = len(message.seq_ids)
    if not n == len(message.positions) == len(message.outputs):
        raise FrameError(
            f"{n} sequence ids, {len(message.positions)} positions and {len(message.outputs)} output flags"
        )
    if not n:
        return EMPTY_BATCH
    if message.outputs.strip(b"\0\1"):
        raise FrameError("an output flag that is neither 0 nor 1")
    return Batch(
        seq_ids=np.array(message.seq_ids[:], np.int32),
        positions=np.array(message.positions[:], np.int32),
        outputs=np.frombuffer(message.outputs, np.bool_),
    )


def _kv_op(op: pb.KvOp) -> KvOp:
    if not 0 <= op.kind < len(_KINDS):
        raise FrameError(f"an unknown KV operation: {op.kind}")
    return KvOp(_KINDS[op.kind], seq=op.seq, target=op.target, p0=op.p0, p1=op.p1)


def _failure(failure: pb.Failure) -> Failure:
    if max(len(failure.code), len(failure.message), len(failure.device)) > MAX_TEXT:
        raise FrameError("a failure with more text than a person reads")
    return Failure(code=failure.code, message=failure.message, device=failure.device)


def _clip(text: str) -> str:
    """One line, short enough for the other end whatever its characters weigh."""
    return " ".join(text.split())[: MAX_TEXT // 4]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise FrameError("a number that does not end in a frame")


def _split(raw: bytes) -> tuple[bytes, memoryview]:
    """The message without its activations, and the activations where they lie in `raw`.

    Refuses more fields than a frame has: a megabyte of two-byte fields would become a hundred megabytes
    of objects.
    """
    at, start, end = 0, -1, -1
    cut = (0, 0)
    try:
        for _ in range(MAX_KV_OPS + _PLAIN_FIELDS + 1):
            if at == len(raw):
                body = memoryview(raw)[start:end] if start >= 0 else memoryview(b"")
                return raw[: cut[0]] + raw[cut[1] :], body
            begin = at
            tag, at = _read_varint(raw, at)
            if tag & 7 == 0:
                _, at = _read_varint(raw, at)
            elif tag & 7 == 2:
                length, at = _read_varint(raw, at)
                if length > len(raw) - at:
                    raise FrameError("a frame that is cut short")
                if tag >> 3 == _ACTIVATIONS:
                    if start >= 0:
                        raise FrameError("activations twice in one frame")
                    start, end, cut = at, at + length, (begin, at + length)
                at += length
            else:
                raise FrameError("bytes that are no frame")
    except IndexError:
        raise FrameError("a frame that is cut short") from None
    raise FrameError("a frame with too many fields")
