"""Vocabulary files made of the bundled one, with some metadata changed."""

from __future__ import annotations

from pathlib import Path

from edged.store.gguf_file import Pair, Value, make_pair, read_gguf, write_header


def with_metadata(source: Path, target: Path, prefix: str = "tokenizer.ggml.", **changes: Value) -> Path:
    """A copy of `source` whose keys `<prefix><name>` have new values of the old types."""
    pairs = dict(read_gguf(source).pairs)
    for name, value in changes.items():
        key = f"{prefix}{name}"
        old = pairs[key]
        pairs[key] = make_pair(key, value, old.value_type, old.element_type)
    return _write(target, list(pairs.values()))


def without(source: Path, target: Path, *names: str) -> Path:
    keys = {f"tokenizer.ggml.{name}" for name in names}
    return _write(target, [pair for key, pair in read_gguf(source).pairs.items() if key not in keys])


def _write(target: Path, pairs: list[Pair]) -> Path:
    target.write_bytes(write_header(pairs, [])[0])
    return target
