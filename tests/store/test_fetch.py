"""Fetching parts from devices that lie, break off, hang up or send too much."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from edged.errors import (
    DamagedPartError,
    DiskFullError,
    DocumentError,
    MissingPartError,
    PeerLostError,
    StoreError,
)
from edged.rpc import edged_pb2
from edged.rpc.edged_pb2_grpc import StoreStub
from edged.rpc.status import unwrap
from edged.store import fetch as fetch_module
from edged.store.catalogue import Catalogue
from edged.store.fetch import GrpcSource, fetch_parts
from edged.store.manifest import Manifest
from edged.store.messages import CatalogueAnswer, CatalogueQuery
from edged.store.service import StoreService

STEP = 10_000


class MemorySource:
    """A device whose parts are read from another store; what it does wrong is told by subclasses."""

    def __init__(self, device: str, catalogue: Catalogue) -> None:
        self.device = device
        self._catalogue = catalogue
        self.asked: list[tuple[str, int]] = []
        self.closed = False

    def which(self, shas: Sequence[str]) -> set[str]:
        return {sha256 for sha256 in shas if self._catalogue.has(sha256)}

    def fetch(self, sha256: str, offset: int, size: int) -> Generator[bytes, None, None]:
        self.asked.append((sha256, offset))
        data = self._catalogue.path(sha256).read_bytes()
        for at in range(offset, len(data), STEP):
            yield data[at : at + STEP]

    def close(self) -> None:
        self.closed = True


class Flipping(MemorySource):
    def __init__(self, device: str, catalogue: Catalogue, times: int) -> None:
        super().__init__(device, catalogue)
        self._left = times
        self._lock = threading.Lock()

    def fetch(self, sha256: str, offset: int, size: int) -> Generator[bytes, None, None]:
        with self._lock:
            flip = self._left > 0
            self._left -= 1
        for number, data in enumerate(super().fetch(sha256, offset, size)):
            yield bytes([data[0] ^ 1]) + data[1:] if flip and number == 0 else data


class BreakingOff(MemorySource):
    """Ends each transfer after one step, in an error or as if that were all."""

    def __init__(self, device: str, catalogue: Catalogue, silent: bool) -> None:
        super().__init__(device, catalogue)
        self._silent = silent

    def fetch(self, sha256: str, offset: int, size: int) -> Generator[bytes, None, None]:
        yield next(super().fetch(sha256, offset, size))
        if not self._silent:
            raise PeerLostError(f"{self.device} no longer answers")


class Dead(MemorySource):
    def which(self, shas: Sequence[str]) -> set[str]:
        raise PeerLostError(f"{self.device} no longer answers")


class Dying(MemorySource):
    def fetch(self, sha256: str, offset: int, size: int) -> Generator[bytes, None, None]:
        raise PeerLostError(f"{self.device} no longer answers")
        yield b""


class Endless(MemorySource):
    def fetch(self, sha256: str, offset: int, size: int) -> Generator[bytes, None, None]:
        while True:
            self.asked.append((sha256, offset))
            yield bytes(STEP)


@pytest.fixture
def empty(tmp_path: Path) -> Catalogue:
    return Catalogue(tmp_path / "other")


def everything_is_right(catalogue: Catalogue, manifest: Manifest) -> None:
    for part in manifest.parts:
        assert hashlib.sha256(catalogue.path(part.sha256).read_bytes()).hexdigest() == part.sha256
    assert not list(catalogue.scratch.iterdir())


def test_all_parts_come_and_progress_counts_every_byte(
    small: tuple[Catalogue, Manifest], empty: Catalogue
) -> None:
    theirs, manifest = small
    seen: list[int] = []
    source = MemorySource("nuc", theirs)
    fetch_parts(manifest.parts, [source], empty, on_progress=seen.append)
    everything_is_right(empty, manifest)
    assert seen[-1] == sum(part.size for part in manifest.parts)
    assert seen == sorted(seen)
    assert source.closed
    fetch_parts(manifest.parts, [], empty)  # nothing is missing any more


def test_a_flipped_byte_is_found_and_fetched_again_elsewhere(
    small: tuple[Catalogue, Manifest], empty: Catalogue
) -> None:
    theirs, manifest = small
    bad, good = Flipping("bad", theirs, times=10**9), MemorySource("good", theirs)
    fetch_parts([manifest.layer(2)], [bad, good], empty)
    assert len(bad.asked) == 1
    assert good.asked == [(manifest.layer(2).sha256, 0)]
    assert empty.verify(manifest.layer(2)).stat().st_size == manifest.layer(2).size


def test_a_byte_flipped_once_is_fetched_again_from_the_same(
    small: tuple[Catalogue, Manifest], empty: Catalogue
) -> None:
    theirs, manifest = small
    source = Flipping("only", theirs, times=2)
    fetch_parts([manifest.layer(0)], [source], empty)
    assert [offset for _, offset in source.asked] == [0, 0, 0]
    assert empty.has(manifest.layer(0).sha256)


def test_always_wrong_bytes_end_in_an_error_naming_part_and_device(
    small: tuple[Catalogue, Manifest], empty: Catalogue
) -> None:
    theirs, manifest = small
    source = Flipping("nas", theirs, times=10**9)
    with pytest.raises(DamagedPartError, match=r"layer\.003 .* nas"):
        fetch_parts([manifest.layer(3)], [source], empty)
    assert len(source.asked) == fetch_module.MOST_DAMAGED
    assert not empty.has(manifest.layer(3).sha256)
    assert not list(empty.scratch.iterdir())


@pytest.mark.parametrize("silent", [False, True])
def test_broken_off_transfers_go_on_where_they_stopped(
    silent: bool, small: tuple[Catalogue, Manifest], empty: Catalogue
) -> None:
    theirs, manifest = small
    part = manifest.layer(1)
    one, two = BreakingOff("one", theirs, silent), BreakingOff("two", theirs, silent)
    fetch_parts([part], [one, two], empty)
    offsets = sorted(offset for _, offset in one.asked + two.asked)
    assert offsets == list(range(0, part.size, STEP))
    assert one.asked and two.asked
    assert empty.verify(part)


def test_what_arrived_is_kept_over_restarts(small: tuple[Catalogue, Manifest], empty: Catalogue) -> None:
    theirs, manifest = small
    part = manifest.layer(1)
    empty.add(manifest)
    cancelled = threading.Event()
    with pytest.raises(StoreError, match="called off"):
        fetch_parts(
            [part],
            [MemorySource("nuc", theirs)],
            empty,
            on_progress=lambda done: cancelled.set() if done >= 3 * STEP else None,
            cancelled=cancelled.is_set,
        )
    again = Catalogue(empty.home)
    source = MemorySource("nuc", theirs)
    seen: list[int] = []
    fetch_parts([part], [source], again, on_progress=seen.append)
    assert source.asked == [(part.sha256, 3 * STEP)]
    assert seen[0] == 3 * STEP and seen[-1] == part.size
    assert again.verify(part)


def test_a_damaged_remainder_is_fetched_again(small: tuple[Catalogue, Manifest], empty: Catalogue) -> None:
    theirs, manifest = small
    part = manifest.layer(1)
    for left in (STEP, part.size, part.size + 5):
        empty.partial_path(part.sha256).write_bytes(b"x" * left)
        fetch_parts([part], [MemorySource("nuc", theirs)], empty)
        empty.verify(part).unlink()


def test_dead_devices_are_passed_over(small: tuple[Catalogue, Manifest], empty: Catalogue) -> None:
    theirs, manifest = small
    sources = [Dead("a", theirs), Dying("b", theirs), MemorySource("c", theirs)]
    fetch_parts(manifest.parts, sources, empty)
    everything_is_right(empty, manifest)


def test_nobody_left_is_an_error_with_the_reasons(
    small: tuple[Catalogue, Manifest], empty: Catalogue
) -> None:
    theirs, manifest = small
    with pytest.raises(MissingPartError, match=r"layer\.000.*b no longer answers"):
        fetch_parts([manifest.layer(0)], [Dying("b", theirs)], empty)
    with pytest.raises(MissingPartError, match="a no longer answers"):
        fetch_parts([manifest.layer(0)], [Dead("a", theirs)], empty)
    with pytest.raises(
        MissingPartError, match="no other device to ask; bring the model again with `edged import FILE`"
    ):
        fetch_parts([manifest.layer(0)], [], empty)
    with pytest.raises(MissingPartError, match="none of the devices"):
        fetch_parts([manifest.layer(0)], [MemorySource("c", empty)], empty)


def test_too_much_is_not_taken(small: tuple[Catalogue, Manifest], empty: Catalogue) -> None:
    theirs, manifest = small
    part = manifest.layer(0)
    source = Endless("flood", theirs)
    with pytest.raises(DamagedPartError, match="flood"):
        fetch_parts([part], [source], empty)
    assert len(source.asked) == fetch_module.MOST_DAMAGED * -(-part.size // STEP)


def test_a_disk_too_small_is_said_before_anything_is_fetched(
    small: tuple[Catalogue, Manifest], empty: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, manifest = small
    monkeypatch.setattr(fetch_module, "free_bytes", lambda _: 1000)
    source = MemorySource("nuc", theirs)
    with pytest.raises(DiskFullError, match="kB are needed"):
        fetch_parts(manifest.parts, [source], empty)
    assert not source.asked and source.closed


def test_two_fetches_of_the_same_parts_share_the_work(
    small: tuple[Catalogue, Manifest], empty: Catalogue
) -> None:
    theirs, manifest = small
    sources = [MemorySource("one", theirs), MemorySource("two", theirs)]
    catalogues = [empty, Catalogue(empty.home)]
    with futures.ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(fetch_parts, manifest.parts, [source], catalogue)
            for source, catalogue in zip(sources, catalogues, strict=True)
        ]
        for run in runs:
            run.result()
    everything_is_right(empty, manifest)
    asked = sources[0].asked + sources[1].asked
    assert len(asked) == len(manifest.parts)


@pytest.fixture
def channel(small: tuple[Catalogue, Manifest]) -> Iterator[grpc.Channel]:
    server = grpc.server(futures.ThreadPoolExecutor(8))
    StoreService(small[0]).add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as opened:
        yield opened
    server.stop(0).wait()


def test_over_grpc(small: tuple[Catalogue, Manifest], empty: Catalogue, channel: grpc.Channel) -> None:
    _, manifest = small
    fetch_parts(manifest.parts, [GrpcSource("nuc", channel)], empty)
    everything_is_right(empty, manifest)


def test_the_catalogue_over_grpc(small: tuple[Catalogue, Manifest], channel: grpc.Channel) -> None:
    answer = StoreStub(channel).Catalogue(edged_pb2.Document(body=CatalogueQuery().pack()))
    assert [Manifest.unpack(body) for body in CatalogueAnswer.unpack(answer.body).manifests] == [small[1]]


@pytest.mark.parametrize("sha256", ["", "../../identity", "../models/x", "0" * 64, "A" * 64, "a" * 63 + "/"])
def test_only_parts_are_served(sha256: str, channel: grpc.Channel) -> None:
    source = GrpcSource("nuc", channel)
    assert source.which([sha256]) == set()
    with pytest.raises(MissingPartError, match="not on this device"):
        list(source.fetch(sha256, 0, 10))


def test_nonsense_is_refused(small: tuple[Catalogue, Manifest], channel: grpc.Channel) -> None:
    part = small[1].layer(0)
    with pytest.raises(DocumentError, match="ends before"):
        list(GrpcSource("nuc", channel).fetch(part.sha256, part.size + 1, part.size + 2))
    with pytest.raises(grpc.RpcError) as caught:
        StoreStub(channel).Which(edged_pb2.Document(body=b"\x81\xa1x\x01"))
    assert isinstance(unwrap(caught.value, "nuc"), DocumentError)


def test_a_closed_or_dead_connection_is_an_error_in_words(
    small: tuple[Catalogue, Manifest], channel: grpc.Channel
) -> None:
    part = small[1].layer(0)
    nobody = GrpcSource("gone", grpc.insecure_channel("127.0.0.1:1"))
    with pytest.raises(PeerLostError, match="gone"):
        nobody.which([part.sha256])
    source = GrpcSource("nuc", channel)
    source.close()
    with pytest.raises(DocumentError, match="nuc is closed"):
        source.which([part.sha256])
