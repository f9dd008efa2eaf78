"""A disk of limited speed: a cgroup that slows reading and counts every byte; and files out of cache."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from tests.lab.cgroup import Hierarchy, prefix_into, remove_group, required
from tests.lab.shell import LabUnavailableError

UNLIMITED = 2**40  # bytes a second: version 1 counts only where there is a rule


def block_device(path: Path) -> str:
    """MAJOR:MINOR of the whole disk that holds `path`. LabUnavailableError where no real disk does."""
    number = path.stat().st_dev
    name = f"{os.major(number)}:{os.minor(number)}"
    place = Path("/sys/dev/block") / name
    if not place.exists():
        raise LabUnavailableError(f"{path} is not on a disk that can be slowed")
    if (place / "partition").exists():
        return (place.resolve().parent / "dev").read_text().strip()
    return name


class DiskGroup:
    """A cgroup whose processes read at most `rate` bytes a second from the disk that holds `path`."""

    def __init__(
        self, name: str, path: Path, rate: int | None = None, hierarchy: Hierarchy | None = None
    ) -> None:
        hierarchy = hierarchy or required("disk")
        self.version = hierarchy.version
        self.disk = block_device(path)
        try:
            self.path = hierarchy.make(name, "io" if self.version == 2 else "blkio")
            rate = rate or UNLIMITED
            if self.version == 2:
                (self.path / "io.max").write_text(f"{self.disk} rbps={rate}")
            else:
                (self.path / "blkio.throttle.read_bps_device").write_text(f"{self.disk} {rate}")
        except OSError as error:
            raise LabUnavailableError(f"no disk can be slowed here: {error}") from None

    @property
    def prefix(self) -> tuple[str, ...]:
        """What goes before a command so that it begins inside the group."""
        return prefix_into(self.path)

    @property
    def read_bytes(self) -> int:
        """Bytes that the group's processes have read from the disk; what came from the cache is none."""
        if self.version == 1:
            for line in (self.path / "blkio.throttle.io_service_bytes").read_text().splitlines():
                words = line.split()
                if words[:2] == [self.disk, "Read"]:
                    return int(words[2])
            return 0
        for line in (self.path / "io.stat").read_text().splitlines():
            disk, *pairs = line.split()
            if disk == self.disk:
                return int(dict(pair.split("=") for pair in pairs)["rbytes"])
        return 0

    def close(self) -> None:
        remove_group(self.path)


def forget(files: Iterable[Path]) -> None:
    """Drops files from the page cache, so that whoever reads them next pays for it in its own group.

    A page that another program has mapped stays.
    """
    for file in files:
        if not file.is_file():
            continue
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)  # a page that is not written yet cannot be dropped
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
