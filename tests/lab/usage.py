"""What the kernel counts of one process: bytes read from disk, page faults, memory, time."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """Since the start of a process, or between two moments (`later - earlier`)."""

    read_bytes: int  # from the disk, also through mapped files
    major_faults: int  # page faults that waited for the disk
    minor_faults: int
    cpu_s: float
    swapped: int  # bytes in swap now; in a difference, by how much they grew
    peak_resident: int  # bytes; in a difference, the later one's

    def __sub__(self, earlier: Usage) -> Usage:
        return Usage(
            self.read_bytes - earlier.read_bytes,
            self.major_faults - earlier.major_faults,
            self.minor_faults - earlier.minor_faults,
            self.cpu_s - earlier.cpu_s,
            self.swapped - earlier.swapped,
            self.peak_resident,
        )


def usage_of(pid: int | str = "self") -> Usage:
    """Counts of a process with all of its threads. FileNotFoundError once it is gone."""
    process = Path("/proc") / str(pid)
    io = keyed_with_colon(process / "io")
    status = keyed_with_colon(process / "status")
    # after the name in brackets, which may hold anything: field 3 on, see proc(5)
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    return Usage(
        read_bytes=io["read_bytes"],
        minor_faults=int(fields[7]),
        major_faults=int(fields[9]),
        cpu_s=(int(fields[11]) + int(fields[12])) / TICKS,
        swapped=status.get("VmSwap", 0) * 1024,
        peak_resident=status.get("VmHWM", 0) * 1024,
    )


def keyed_with_colon(file: Path) -> dict[str, int]:
    """Lines `Name: number [unit]`; others are left out."""
    found = {}
    for line in file.read_text().splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            found[name] = int(words[0])
    return found
