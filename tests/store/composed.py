"""A composed window as a real file, for readers that know nothing of windows."""

from __future__ import annotations

from pathlib import Path

from edged.backend.source import WindowSource


def materialise(source: WindowSource, path: Path) -> Path:
    with path.open("wb") as file:
        file.write(source.header)
        for segment in source.segments:
            if segment.path is not None:
                with segment.path.open("rb") as part:
                    part.seek(segment.file_offset)
                    file.seek(segment.offset)
                    file.write(part.read(segment.length))
        file.truncate(source.size)
    return path
