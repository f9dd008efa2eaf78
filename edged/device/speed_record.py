"""What was measured of this device, kept in its home directory for as long as it is the same device.

A busy moment makes a measurement too low, never too high: so the first few starts of a daemon measure again,
and of each figure the best counts.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Self

from pydantic import Field

from edged.documents import Document
from edged.errors import EdgedError
from edged.planning.profile import ProcessorProfile, TypeSpeed
from edged.private_file import write_private

log = logging.getLogger(__name__)

MOST_RECORDS = 4  # the same machine with other numbers of threads or other limits
ENOUGH_TIMES = 3  # measurements after which the best is taken for the truth


class Measured(Document):
    """The figures that do not change from one moment to the next."""

    of: str  # what it was measured on and with; see `edged.device.local_device.circumstances`
    times: int = Field(default=1, ge=1)  # how often
    processors: tuple[ProcessorProfile, ...] = Field(min_length=1)  # the CPU first
    disk_sequential: float = Field(ge=0)  # bytes per second, 0: could not be measured
    disk_random: float = Field(ge=0)

    @property
    def is_certain(self) -> bool:
        return self.times >= ENOUGH_TIMES

    def with_best_of(self, other: Measured) -> Self:
        """Each figure as high as either has it. `other` is of the same circumstances."""
        before = {processor.name: processor for processor in other.processors}
        return self.model_copy(
            update={
                "times": self.times + other.times,
                "processors": tuple(
                    _best(processor, before.get(processor.name, processor)) for processor in self.processors
                ),
                "disk_sequential": max(self.disk_sequential, other.disk_sequential),
                "disk_random": max(self.disk_random, other.disk_random),
            }
        )


class _Records(Document):
    """The file: newest first."""

    records: tuple[Measured, ...] = Field(default=(), max_length=MOST_RECORDS)


class SpeedRecord:
    """HOME/run/profile."""

    def __init__(self, home: Path) -> None:
        self._path = home / "run" / "profile"

    def find(self, of: str) -> Measured | None:
        """What is known of exactly these circumstances."""
        return next((record for record in self._read() if record.of == of), None)

    def keep(self, measured: Measured) -> None:
        """In place of what was known of the same circumstances.

        A disk that refuses is logged, not raised: the next start measures again.
        """
        others = tuple(record for record in self._read() if record.of != measured.of)
        records = _Records(records=(measured, *others)[:MOST_RECORDS])
        try:
            write_private(self._path, records.pack())
        except EdgedError as error:
            log.warning("the measured profile could not be kept: %s", error.message)

    def _read(self) -> tuple[Measured, ...]:
        try:
            return _Records.unpack(self._path.read_bytes()).records
        except (OSError, EdgedError):
            return ()  # none yet, or of another version


def _best(one: ProcessorProfile, other: ProcessorProfile) -> ProcessorProfile:
    before = {speed.type: speed for speed in other.speeds}

    def best(speed: TypeSpeed) -> TypeSpeed:
        known = before.get(speed.type, speed)
        return TypeSpeed(
            type=speed.type,
            decode=max(speed.decode, known.decode),
            prefill=max(speed.prefill, known.prefill),
        )

    return one.model_copy(
        update={
            "speeds": tuple(map(best, one.speeds)),
            "memory_bandwidth": max(one.memory_bandwidth, other.memory_bandwidth),
            "attention_decode": max(one.attention_decode, other.attention_decode),
            "attention_prefill": max(one.attention_prefill, other.attention_prefill),
        }
    )
