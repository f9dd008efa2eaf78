"""Loading, memory, and everything that can go wrong with the files below a window."""

from __future__ import annotations

import ctypes
import gc
import logging
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from edged.backend import native
from edged.backend.native import load_window
from edged.backend.source import Segment, Tap, WindowSource
from edged.backend.window import KvOp
from edged.errors import WindowError
from edged.planning.plan import ContextOptions
from tests.backend.chain import batch_of, tokens_of
from tests.backend.conftest import THREADS

pytestmark = pytest.mark.model

SourceOf = Callable[[int, int], WindowSource]


def moved(source: WindowSource, to: Path) -> WindowSource:
    """The same window over copies of its part files."""
    copies: dict[Path, Path] = {}
    for segment in source.segments:
        if segment.path is not None and segment.path not in copies:
            copies[segment.path] = Path(shutil.copy(segment.path, to / str(len(copies))))
    segments = tuple(
        replace(segment, path=None if segment.path is None else copies[segment.path])
        for segment in source.segments
    )
    embedding = source.embedding
    if embedding is not None:
        embedding = replace(embedding, path=Path(shutil.copy(embedding.path, to / "embedding")))
    return replace(source, segments=segments, embedding=embedding)


def paths(source: WindowSource) -> list[Path]:
    return [segment.path for segment in source.segments if segment.path is not None]


def test_a_missing_part(source_of: SourceOf, context: ContextOptions, tmp_path: Path) -> None:
    source = moved(source_of(3, 5), tmp_path)
    paths(source)[-1].unlink()
    with pytest.raises(WindowError, match=r"cannot open .*: No such file"):
        load_window(source, context, THREADS)


def test_a_part_cut_short(source_of: SourceOf, context: ContextOptions, tmp_path: Path) -> None:
    source = moved(source_of(3, 5), tmp_path)
    with paths(source)[0].open("r+b") as file:
        file.truncate(10_000)
    with pytest.raises(WindowError, match="is too short: 10000 bytes"):
        load_window(source, context, THREADS)


def test_a_part_cut_short_while_it_loads(
    source_of: SourceOf, context: ContextOptions, tmp_path: Path
) -> None:
    source = moved(source_of(3, 5), tmp_path)

    def cut(_done: float) -> None:
        for path in paths(source):
            with path.open("r+b") as file:
                file.truncate(1000)

    with pytest.raises(WindowError, match=r"cannot load layers 3 to 4: .* has been cut short"):
        load_window(source, context, THREADS, progress=cut)


def test_an_embedding_cut_short_under_a_running_window(
    source_of: SourceOf, context: ContextOptions, tmp_path: Path
) -> None:
    source = moved(source_of(0, 1), tmp_path)
    window = load_window(source, context, THREADS)
    rows = [(0, 0, 5), (0, 1, 6)]
    expected = window.run(batch_of(rows), tokens_of(rows))
    window.apply(KvOp("clear"))
    assert source.embedding is not None
    with source.embedding.path.open("r+b") as file:
        file.truncate(source.embedding.file_offset + 360 * 100)
    high = [(0, 0, 5), (0, 1, 40_000)]
    with pytest.raises(WindowError, match="has been cut short"):
        window.run(batch_of(high), tokens_of(high))
    assert np.array_equal(window.run(batch_of(rows), tokens_of(rows)), expected)
    window.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"header": b"GGUF" + bytes(200)}, "cannot load layers 3 to 4: .+"),
        ({"header": b""}, "cannot load layers 3 to 4: .+"),
        ({"captures": (Tap(name="l_out-7", width=576),)}, "has no tensor l_out-7"),
        ({"captures": (Tap(name="attn_norm-0", width=575),)}, "attn_norm-0 has not the expected shape"),
        ({"captures": (Tap(width=576),)}, "has no name"),
        ({"captures": (Tap(name="l_out-1", offset=1, width=576),)}, "does not fit into the state"),
        ({"captures": (Tap(name="l_out-1", offset=-1, width=5),)}, "does not fit into the state"),
        ({"captures": ()}, "vocabulary has 32 tokens"),
        ({"entries": ()}, "without inputs"),
        ({"entries": (Tap(source="no.weight", width=576),)}, "has no tensor no.weight"),
        ({"entries": (Tap(name="embd", into="l_out-0", width=576),)}, "has no tensor embd"),
        ({"reads_tokens": True}, "only read tokens that states carry"),
        ({"width": 0}, "cannot be"),
        ({"n_embd": 577}, "says 576 values per token, its source 577"),
        ({"last": 3}, "at least one layer"),
        ({"segments": ()}, "cannot load layers 3 to 4: .+"),
        ({"segments": (Segment(0, 8, None),)}, "overlap"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else None,
)
def test_a_source_that_makes_no_sense(
    source_of: SourceOf, context: ContextOptions, change: dict[str, Any], message: str
) -> None:
    extra: dict[str, Any] = {"n_vocab": 49152} if change == {"captures": ()} else {}
    source = replace(source_of(3, 5), **extra, **change)
    with pytest.raises(WindowError, match=message):
        load_window(source, context, THREADS)


def test_options_that_cannot_be(source_of: SourceOf, context: ContextOptions) -> None:
    source = source_of(3, 4)
    off = context.model_copy(update={"kv_type": "q8_0", "flash_attention": "off"})
    with pytest.raises(WindowError, match="q8_0 needs flash attention"):
        load_window(source, off, THREADS)
    for threads in (0, -1, 100_000):
        with pytest.raises(WindowError, match="n_threads is"):
            load_window(source, context, threads)
    with pytest.raises(WindowError, match="n_gpu_layers is -1"):
        load_window(source, context, THREADS, n_gpu_layers=-1)
    if all(device.kind == "cpu" for device in native.devices()):
        with pytest.raises(WindowError, match="no GPU"):
            load_window(source, context, THREADS, n_gpu_layers=1)


def test_the_log_of_a_load_is_for_debugging_only(
    source_of: SourceOf,
    context: ContextOptions,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    native.route_log()
    with caplog.at_level(logging.DEBUG, "edged.llama"):
        load_window(source_of(3, 5), context, THREADS).close()
    assert any("KV buffer size" in record.message for record in caplog.records)
    assert {record.levelno for record in caplog.records if record.name == "edged.llama"} == {logging.DEBUG}
    assert capfd.readouterr() == ("", "")


def test_progress_goes_to_one_and_may_end_the_load(source_of: SourceOf, context: ContextOptions) -> None:
    seen: list[float] = []
    load_window(source_of(3, 8), context, THREADS, progress=seen.append).close()
    assert seen == sorted(seen)
    assert seen[-1] == 1.0

    def give_up(_done: float) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        load_window(source_of(3, 8), context, THREADS, progress=give_up)


@pytest.mark.parametrize(("kv_type", "value_bytes"), [("f16", 2.0), ("q8_0", 34 / 32)])
def test_memory_is_told_exactly(
    source_of: SourceOf, context: ContextOptions, kv_type: str, value_bytes: float
) -> None:
    source = source_of(3, 8)
    options = context.model_copy(update={"kv_type": kv_type, "flash_attention": "on"})
    window = load_window(source, options, THREADS)
    weights = sum(segment.length for segment in source.segments)
    assert abs(window.memory.weights - weights) < 0.01 * weights  # the source pads its tensors to pages
    keys_and_values = 2 * 5 * 192  # layers, values per position in 3 heads of 64
    assert window.memory.kv == keys_and_values * value_bytes * options.n_ctx * options.n_seq_max
    assert 0 < window.memory.compute < 64 * 2**20
    assert window.memory.total == sum((window.memory.weights, window.memory.kv, window.memory.compute))
    window.close()


def test_loading_again_and_again_keeps_memory_level(source_of: SourceOf, context: ContextOptions) -> None:
    source, process = source_of(10, 13), psutil.Process()
    rows = [(seq, i, 0) for seq in range(2) for i in range(16)]
    states = np.ones((len(rows), 576), np.float32)

    def once() -> None:
        window = load_window(source, context, THREADS)
        window.run(batch_of(rows), states)
        window.close()

    def resident() -> int:
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc keeps what is freed for a while
        if trim is not None:
            trim(0)
        return int(process.memory_info().rss)

    for _ in range(2):
        once()
    before = resident()
    files = process.num_fds()
    for _ in range(20):
        once()
    assert resident() - before < 2**20  # a window of three layers has 6 MiB of weights and 1 MiB of KV
    assert process.num_fds() == files


def test_a_run_can_be_cancelled_from_another_thread(source_of: SourceOf) -> None:
    """Which also shows that the interpreter lock is free meanwhile."""
    options = ContextOptions(n_ctx=512, n_seq_max=1, n_ubatch=512)
    window = load_window(source_of(0, 30), options, THREADS)
    rows = [(0, i, i) for i in range(512)]
    batch, tokens = batch_of(rows, False), tokens_of(rows)
    raised: list[BaseException] = []

    def run() -> None:
        try:
            window.run_last(batch, tokens)
        except WindowError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        window.cancel()
        thread.join(0.001)
    assert [str(error) for error in raised] == ["the run was cancelled"]
    first = [(0, 0, 1)]
    assert np.isfinite(window.run_last(batch_of(first), tokens_of(first))).all()
    window.close()


def test_closing_waits_for_a_run_in_another_thread(source_of: SourceOf, context: ContextOptions) -> None:
    window = load_window(source_of(3, 8), context, THREADS)
    outcome: list[str] = []

    def run() -> None:
        try:
            while True:
                window.run(batch_of([(0, 0, 0)]), np.ones((1, 576), np.float32))
                window.apply(KvOp("clear"))
        except WindowError as error:
            outcome.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    window.close()
    thread.join()
    assert outcome[0] in ("the window is closed", "the run was cancelled")


def test_what_the_machine_can_do() -> None:
    speed = native.measure(1, 40)
    assert 1e8 < speed.bandwidth < 1e12
    assert 1e8 < speed.flops < 1e14
    assert speed.flops > speed.bandwidth
    assert "cpu" in {device.kind for device in native.devices()}
    assert all(device.memory_total > 0 for device in native.devices() if device.kind == "cpu")
    assert native.system_info()
    with pytest.raises(WindowError, match="0 threads"):
        native.measure(0)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's peak of memory")
def test_measuring_takes_no_more_memory_than_it_may() -> None:
    code = (
        "import re; from pathlib import Path; from edged.backend import native\n"
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "before = peak(); native.measure(1, 10, memory=4 << 20); print(peak() - before)"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(child.stdout) < 24 * 1024
