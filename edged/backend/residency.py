"""Which layers of a window are in memory, and which are read again for every token.

A streamed layer lies on disk as an *image*: its weights exactly as the kernels of this processor want them.
The streamer of the device reads the images of all its windows in order of use, a fixed number of bytes ahead.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edged.backend import _native

MICROSECOND = 1e-6
SLICE_BYTES = _native.SLICE_BYTES  # the most that is read of a matrix at once, where it can be cut


@dataclass(frozen=True, slots=True)
class ResidencyBytes:
    """Bytes of a window's layers as they lie in memory."""

    resident: int  # in memory between tokens
    locked: int  # of these, what the system promised not to swap out
    streamed: int  # read from disk for every run


@dataclass(frozen=True, slots=True)
class StreamCounts:
    """What a streamer has done since it was made."""

    read: int  # bytes from disk
    wasted: int  # of these, bytes that had to make room before they were used
    waits: int  # how often a run waited for the disk
    waited: float  # seconds
    slots: int  # bytes that the read-ahead takes now


class Streamer:
    """Reads ahead for all windows of one device. Close it after the windows."""

    def __init__(self, read_ahead: int, slice_bytes: int = SLICE_BYTES) -> None:
        """`read_ahead`: bytes that may be held for streamed layers (two slices' worth is taken in any case,
        and more where a matrix cannot be cut). `slice_bytes`: the most that is read of a matrix at once.
        """
        self._streamer = _native.Streamer(read_ahead, slice_bytes)

    @property
    def counts(self) -> StreamCounts:
        read, wasted, waits, waited, slots = self._streamer.counts
        return StreamCounts(read, wasted, waits, waited * MICROSECOND, slots)

    def set_read_ahead(self, read_ahead: int) -> None:
        """Changes how many bytes may be held; waits for runs in progress. Raises WindowError."""
        self._streamer.set_read_ahead(read_ahead)

    def close(self) -> None:
        """Ends its threads; idempotent."""
        self._streamer.close()


@dataclass(frozen=True, slots=True)
class Placing:
    """Where the plan wants a window's layers.

    gpu_layers: how many are on a GPU.
    streamed:   the layers that are streamed, counted from the window's first.
    read_ahead: bytes that this device may hold for streamed layers, of all its windows together.
    spare:      bytes that tensors of this window's streamed layers may take for good.
    keys, output_key: as in `Residency`.
    """

    keys: tuple[str, ...]
    gpu_layers: int = 0
    streamed: tuple[int, ...] = ()
    read_ahead: int = 0
    spare: int = 0
    output_key: str = ""

    @property
    def streams(self) -> bool:
        return bool(self.streamed or self.output_key)


@dataclass(frozen=True, slots=True)
class ResidencyFigures:
    """A device's layers now, and what its streamer has done since the daemon started. Bytes, seconds."""

    resident: int = 0
    locked: int = 0
    streamed: int = 0  # per token
    read_ahead: int = 0  # taken by the slots
    read: int = 0
    wasted: int = 0
    waits: int = 0
    waited: float = 0.0
    given_up: int = 0  # layers that are streamed because memory has become short, against the plan


@dataclass(frozen=True, slots=True)
class Residency:
    """Where a window's layers are.

    images:   a directory for images.
    keys:     the beginning of the image's file name for each layer of the window; it tells the weights.
    streamed: the layers that are streamed, counted from the window's first.
    spare:    bytes that tensors of these may take for good.
    output_key: the same as `keys` for the output matrix, where the window ends the model and the matrix is
        streamed as long as the window is there; else empty. Parts of it may stay in `spare` too.
    """

    streamer: Streamer
    images: Path
    keys: tuple[str, ...]
    streamed: tuple[int, ...]
    spare: int = 0
    output_key: str = ""

    def native(self) -> tuple[_native.Streamer, str, list[str], list[int], int, str]:
        """As the native module takes it."""
        images, keys, streamed = str(self.images), list(self.keys), list(self.streamed)
        return self.streamer._streamer, images, keys, streamed, self.spare, self.output_key
