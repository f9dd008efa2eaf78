"""The best speed that this device ever showed: a busy moment makes a measurement too low, never too high."""

from __future__ import annotations

import logging
import platform
from pathlib import Path

from pydantic import Field

from edged import __version__
from edged.backend.native import Speed
from edged.documents import Document
from edged.errors import EdgedError
from edged.private_file import write_private

log = logging.getLogger(__name__)


class SpeedRecord(Document):
    """What was measured, and on what: a record of other hardware, threads or version counts for nothing."""

    of: str
    bandwidth: float = Field(gt=0)
    flops: float = Field(gt=0)


def best_of(measured: Speed, threads: int, path: Path) -> Speed:
    """The better of `measured` and what `path` holds, which is brought up to date.

    A disk that refuses is logged, not raised: the next start measures again.
    """
    of = f"edged {__version__}, {threads} threads, {platform.machine()}, {_processor()}"
    best = measured
    try:
        known = SpeedRecord.unpack(path.read_bytes())
        if known.of == of:
            best = Speed(max(measured.bandwidth, known.bandwidth), max(measured.flops, known.flops))
    except (OSError, EdgedError):
        pass  # none yet, or one that cannot be read
    try:
        write_private(path, SpeedRecord(of=of, bandwidth=best.bandwidth, flops=best.flops).pack())
    except EdgedError as error:
        log.warning("the measured speed could not be kept: %s", error.message)
    return best


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = {line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))}
    return ", ".join(sorted(names))
