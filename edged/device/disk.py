"""How fast the disk under the store gives bytes back, past the page cache.

What is read are parts of models that lie in the store already, or else a file of our own. It has no name from
the moment it is made, so nothing is left of it however this process ends.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import random
import secrets
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

log = logging.getLogger(__name__)

CHUNK = 4 * 2**20  # bytes of one sequential read: as a layer is read ahead
READERS = 2  # at once, so that the disk has its next order before it has filled the last
PIECE = 128 * 2**10  # of one random read: what the kernel fetches round a page that is missing
ENOUGH = 128 * 2**20  # bytes to read from, where there is room
LEAST = 8 * 2**20  # with less than this nothing is measured
FREE_SHARE = 16  # our file takes one part in so many of the free space
WRITE_S = 1.0  # a slow card gets a smaller file
SEQUENTIAL_S = 1.2
SETTLE_S = (
    0.3  # of it that does not count: limits of containers and caches in disks let a burst through first
)
RANDOM_S = 0.2
LEAST_READS = 4
LEAST_S = 1e-9  # no clock is finer
F_NOCACHE = 48  # macOS's fcntl: leave this file out of the page cache


@dataclass(frozen=True, slots=True)
class DiskSpeed:
    """Bytes per second; 0 where it could not be measured."""

    sequential: float = 0.0
    random: float = 0.0


@dataclass(frozen=True, slots=True)
class _Sample:
    """An open file to read from, its first `size` bytes; `cached`: reads go through the page cache."""

    descriptor: int
    size: int
    cached: bool


def measure_disk(folder: Path, room: int = ENOUGH, step: Callable[[], None] = lambda: None) -> DiskSpeed:
    """The disk that holds `folder`, which exists; takes up to three seconds.

    room: the most bytes to write, where the store has too little to read from. step: called before each
    of two measurements.
    """
    try:
        step()
        with _samples(folder, room) as samples:
            if not samples:
                return DiskSpeed()
            sequential = _read_in_sequence(samples)
            step()
            return DiskSpeed(sequential, _read_at_random(samples))
    except OSError as error:
        log.warning("the disk under %s could not be measured: %s", folder, error.strerror or error)
        return DiskSpeed()


def file_system(folder: Path) -> str:
    """Which file system `folder` is on, to notice when the store moves to another."""
    place = folder.resolve()
    mounts = {Path(part.mountpoint): part for part in psutil.disk_partitions(all=True)}
    for parent in (place, *place.parents):
        if parent in mounts:
            return f"{mounts[parent].device} ({mounts[parent].fstype}) at {parent}"
    return ""


@contextmanager
def _samples(folder: Path, room: int) -> Iterator[list[_Sample]]:
    with ExitStack() as stack:
        found: list[_Sample] = []
        for size, path in sorted(_files(folder), reverse=True):
            if (missing := ENOUGH - sum(sample.size for sample in found)) < LEAST:
                break
            with suppress(OSError):  # removed in this moment
                descriptor, cached = _open(path, os.O_RDONLY)
                stack.callback(os.close, descriptor)
                found.append(_Sample(descriptor, min(size, missing) // CHUNK * CHUNK, cached))
        if sum(sample.size for sample in found) < ENOUGH // 4:
            own = _write_own(folder, min(room, ENOUGH), stack)
            found = [own] if own is not None else found
        yield found


def _files(folder: Path) -> Iterator[tuple[int, Path]]:
    for top, _, names in os.walk(folder):
        for name in names:
            path = Path(top) / name
            with suppress(OSError):
                if not path.is_symlink() and (size := path.stat().st_size) >= LEAST:
                    yield size, path


def _open(path: Path, flags: int) -> tuple[int, bool]:
    """A descriptor past the page cache where the file system allows it, and whether it does not."""
    if direct := getattr(os, "O_DIRECT", 0):
        try:
            return os.open(path, flags | direct | os.O_CLOEXEC, 0o600), False
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # Some file systems make the file before they refuse.
            flags &= ~os.O_EXCL
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    if not direct and not hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            fcntl.fcntl(descriptor, F_NOCACHE, 1)
            return descriptor, False
    return descriptor, True


def _write_own(folder: Path, room: int, stack: ExitStack) -> _Sample | None:
    """A file of up to `room` bytes, as many as a second allows; None where the disk is too full for it."""
    free = psutil.disk_usage(str(folder)).free
    most = min(room, free // FREE_SHARE) // CHUNK * CHUNK
    if most < LEAST:
        return None
    path = folder / f".measure-{secrets.token_hex(8)}"
    try:
        descriptor, cached = _open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        stack.callback(os.close, descriptor)
    finally:
        path.unlink(missing_ok=True)
    block = mmap.mmap(-1, CHUNK)
    stack.callback(block.close)
    block.write(random.Random(0).randbytes(CHUNK))  # noqa: S311 - a disk that compresses must not gain by it
    size, end = 0, time.monotonic() + WRITE_S
    while size < most and (size < LEAST or time.monotonic() < end):
        os.lseek(descriptor, size, os.SEEK_SET)
        if os.writev(descriptor, [block]) < CHUNK:
            break  # the disk is full after all
        size += CHUNK
        if cached:
            os.fdatasync(descriptor) if hasattr(os, "fdatasync") else os.fsync(descriptor)
    os.fsync(descriptor)
    return _Sample(descriptor, size, cached) if size >= LEAST else None


def _read_in_sequence(samples: list[_Sample]) -> float:
    """What the disk goes on giving, over many of the tenths of a second in which containers ration it.

    The quickest moments would be quicker than that: a limited disk gives each tenth's ration at once.
    """
    ahead = _round_and_round(samples)
    done: list[float] = []  # when each chunk was there
    began = time.perf_counter()
    turn = threading.Lock()

    def read_on() -> None:
        with _buffer(CHUNK) as buffer:
            while len(done) < LEAST_READS or time.perf_counter() < began + SEQUENTIAL_S:
                with turn:
                    place = next(ahead)
                _read(*place, buffer)
                done.append(time.perf_counter())

    with ThreadPoolExecutor(READERS, thread_name_prefix="edged-disk") as readers:
        for reading in [readers.submit(read_on) for _ in range(READERS)]:
            reading.result()
    return _lasting_rate([began, *sorted(done)])


def _lasting_rate(times: list[float]) -> float:
    """Bytes per second, of the times at which the first chunk was asked for and each chunk was there."""
    settled = [at for at in times if at >= times[0] + SETTLE_S]
    counted = settled if len(settled) > LEAST_READS else times
    return CHUNK * (len(counted) - 1) / max(counted[-1] - counted[0], LEAST_S)


def _round_and_round(samples: list[_Sample]) -> Iterator[tuple[_Sample, int]]:
    """Places to read a chunk from, without end; none is in the page cache."""
    while True:
        for sample in samples:
            _forget(sample)
        for sample in samples:
            for at in range(0, sample.size, CHUNK):
                yield sample, at


def _read_at_random(samples: list[_Sample]) -> float:
    places = [(sample, at) for sample in samples for at in range(0, sample.size, PIECE)]
    random.Random(0).shuffle(places)  # noqa: S311
    times: list[float] = []
    end = time.perf_counter() + RANDOM_S
    with _buffer(PIECE) as buffer:
        for sample in samples:
            _forget(sample)
        for sample, at in places:
            if len(times) >= LEAST_READS and time.perf_counter() > end:
                break
            began = time.perf_counter()
            _read(sample, at, buffer)
            times.append(time.perf_counter() - began)
    return PIECE / max(statistics.median(times), LEAST_S)


@contextmanager
def _buffer(size: int) -> Iterator[mmap.mmap]:
    """Page-aligned, as reading past the page cache demands."""
    with mmap.mmap(-1, size) as buffer:
        yield buffer


def _read(sample: _Sample, at: int, buffer: mmap.mmap) -> None:
    if os.preadv(sample.descriptor, [buffer], at) < len(buffer):
        raise OSError(errno.EIO, "a file became shorter while it was read")


def _forget(sample: _Sample) -> None:
    """Drops what the page cache holds of a file that cannot be read past it."""
    if sample.cached and hasattr(os, "posix_fadvise"):
        os.posix_fadvise(sample.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(sample.descriptor, 0, 0, os.POSIX_FADV_RANDOM)
