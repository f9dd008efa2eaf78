"""Fetching missing parts from other devices: several at a time, resumed where broken off, each checked."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import closing
from typing import Any

from edged.errors import DamagedPartError, DiskFullError, EdgedError, MissingPartError, StoreError
from edged.store.catalogue import Catalogue
from edged.store.manifest import Part
from edged.store.part_file import disk_errors, disk_full, free_bytes
from edged.store.part_source import GrpcSource, PartSource
from edged.store.partial_file import PartialFile

log = logging.getLogger(__name__)

__all__ = ["GrpcSource", "PartSource", "fetch_parts"]

AT_A_TIME = 3  # parts; enough to fill a link whose ends also hash and write
MOST_DAMAGED = 4  # wrong arrivals of one part before it is given up
MOST_TRANSFERS = 64  # begun for one part, each of which brought something and broke off
_ADVICE = "bring the model again with `edged import FILE`, or `edged pull` if it was pulled"
_LOOK_S = 0.2  # how often a caller's wish to stop is looked for while nothing arrives
_WAIT_FOR_OTHER_S = 0.5  # between looks at a part that another process is fetching


def fetch_parts(
    parts: Sequence[Part],
    sources: Sequence[PartSource],
    catalogue: Catalogue,
    on_progress: Callable[[int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> None:
    """Bring these parts into the store, from the first source that has each and delivers it right.

    on_progress: called with the bytes here so far, from several threads, one at a time.
    cancelled:   asked often; once it says so, the fetch ends with StoreError, and what came is kept.
    The sources are closed at the end. Raises MissingPartError where no source has or brings a part,
    DamagedPartError where only wrong bytes come, DiskFullError.
    """
    missing = list({part.sha256: part for part in catalogue.missing(parts)}.values())
    fetch = _Fetch(sources, catalogue, on_progress, cancelled or (lambda: False))
    try:
        if missing:
            fetch.run(missing)
    finally:
        for source in sources:
            source.close()


class _CalledOffError(Exception):
    """Inside only: this transfer is to end because the whole fetch does."""


class _Fetch:
    def __init__(
        self,
        sources: Sequence[PartSource],
        catalogue: Catalogue,
        on_progress: Callable[[int], None] | None,
        cancelled: Callable[[], bool],
    ) -> None:
        self._sources = list(sources)
        self._catalogue = catalogue
        self._on_progress = on_progress
        self._cancelled = cancelled
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._done = 0
        self._failures: Counter[str] = Counter()  # transfers per source that brought nothing
        self._trouble: dict[str, str] = {}  # what went wrong last with each source

    def run(self, parts: list[Part]) -> None:
        total = sum(part.size for part in parts)
        if free_bytes(self._catalogue.scratch) < total - self._here_already(parts):
            raise disk_full(self._catalogue.scratch, total)
        pool = ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="fetch")
        try:
            holders = self._ask(pool, parts)
            self._await([pool.submit(self._bring, part, holders[part.sha256]) for part in parts])
        finally:
            self._stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for source in self._sources:  # ends transfers in which nothing arrives
                source.close()
            pool.shutdown(wait=True)

    def _here_already(self, parts: list[Part]) -> int:
        found = 0
        for part in parts:
            with contextlib.suppress(FileNotFoundError):
                found += self._catalogue.partial_path(part.sha256).stat().st_size
        return found

    def _ask(self, pool: ThreadPoolExecutor, parts: list[Part]) -> dict[str, list[PartSource]]:
        """For each part the sources that say they have it, in the order given. MissingPartError if none."""
        shas = [part.sha256 for part in parts]
        answers = [pool.submit(source.which, shas) for source in self._sources]
        self._settle(answers, stop_at_error=False)
        holders: dict[str, list[PartSource]] = {sha256: [] for sha256 in shas}
        for source, answer in zip(self._sources, answers, strict=True):
            try:
                held = answer.result()
            except EdgedError as error:
                self._trouble[source.device] = error.message
                continue
            for sha256 in held & holders.keys():
                holders[sha256].append(source)
        for part in parts:
            if not holders[part.sha256]:
                raise self._missing(part)
        return holders

    def _await(self, transfers: list[Future[None]]) -> None:
        self._settle(transfers, stop_at_error=True)
        for transfer in transfers:
            if transfer.done() and (error := transfer.exception()) is not None:
                raise error

    def _settle(self, futures: Iterable[Future[Any]], stop_at_error: bool) -> None:
        """Wait until all are done, or one has failed. StoreError once the caller wants to stop."""
        pending = set(futures)
        while pending:
            done, pending = wait(pending, timeout=_LOOK_S, return_when=FIRST_EXCEPTION)
            if self._cancelled():
                raise StoreError("the fetching of layers was called off")
            if stop_at_error and any(one.exception() is not None for one in done):
                return

    def _bring(self, part: Part, holders: list[PartSource]) -> None:
        """One part, from whichever of its holders delivers it."""
        file = self._claim(part)
        if file is None:
            return
        with file:
            try:
                with disk_errors(self._catalogue.scratch, part.size):
                    self._fill(part, file, holders)
            except DiskFullError:
                self._drop(file)  # a remainder kept now would only keep the disk full
                raise

    def _fill(self, part: Part, file: PartialFile, holders: list[PartSource]) -> None:
        self._advance(file.size)
        if file.size == part.size:  # an earlier process got so far and no further
            if file.is_right():
                self._catalogue.adopt_path(file.path, part)
                return
            self._drop(file)
        queue = deque(sorted(holders, key=lambda source: self._failures[source.device]))
        damaged = fruitless = 0
        for _ in range(MOST_TRANSFERS):
            source, before = queue[0], file.size
            queue.rotate(-1)
            self._transfer(part, file, source)
            if file.is_right():
                self._catalogue.adopt_path(file.path, part)
                return
            if file.size == part.size:
                self._drop(file)
                damaged += 1
                fruitless = 0
                log.warning("the part %s came damaged from %s", part.name, source.device)
                if damaged == MOST_DAMAGED:
                    raise DamagedPartError(
                        f"the part {part.name} came damaged {damaged} times, last from {source.device}: "
                        "check that device's disk, or import the model there anew"
                    )
                continue
            fruitless = fruitless + 1 if before == file.size else 0
            if fruitless == len(queue):
                break
        raise self._missing(part)

    def _drop(self, file: PartialFile) -> None:
        self._advance(-file.size)
        file.discard()

    def _claim(self, part: Part) -> PartialFile | None:
        """The part's partial file; None if another process has brought the part meanwhile."""
        while True:
            with disk_errors(self._catalogue.scratch, part.size):
                file = PartialFile.claim(self._catalogue.scratch, part)
            if self._catalogue.has(part.sha256):
                if file is not None:
                    file.discard()
                    file.close()
                self._advance(part.size)
                return None
            if file is not None:
                return file
            if self._stop.wait(_WAIT_FOR_OTHER_S) or self._cancelled():
                raise _CalledOffError

    def _transfer(self, part: Part, file: PartialFile, source: PartSource) -> None:
        """Append what this source sends, and never more than the part has."""
        before = file.size
        try:
            with closing(source.fetch(part.sha256, before, part.size)) as stream:
                for data in stream:
                    if self._stop.is_set() or self._cancelled():
                        raise _CalledOffError
                    wanted = data[: part.size - file.size]
                    file.write(wanted)
                    self._advance(len(wanted))
                    if file.size == part.size:
                        return
            self._trouble[source.device] = f"{source.device} broke off in the middle of {part.name}"
        except EdgedError as error:
            self._trouble[source.device] = error.message
        if file.size == before:
            self._failures[source.device] += 1

    def _advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._on_progress is not None:
                self._on_progress(self._done)

    def _missing(self, part: Part) -> MissingPartError:
        if not self._sources:
            return MissingPartError(
                f"the part {part.name} is missing and there is no other device to ask; {_ADVICE}"
            )
        reasons = "; ".join(self._trouble.values()) or "none of the devices asked has it"
        return MissingPartError(f"the part {part.name} cannot be fetched: {reasons}; {_ADVICE}")
