"""The window as llama.cpp runs it: `NativeWindow` over the compiled module."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt

from edged.backend import _native
from edged.backend.residency import Residency, ResidencyBytes
from edged.backend.source import EmbeddingTable, WindowSource
from edged.backend.window import Batch, Hidden, KvOp, Logits, Tokens, WindowMemory
from edged.errors import WindowError
from edged.planning.plan import ContextOptions

_log = logging.getLogger("edged.llama")


@dataclass(frozen=True, slots=True)
class Speed:
    """What a processor does with weights of one type."""

    bandwidth: float  # bytes of weights per second, matrix times vector: decoding
    flops: float  # multiply-adds x 2 per second, matrix times matrix: prefill


@dataclass(frozen=True, slots=True)
class GgmlDevice:
    """Something that ggml can compute on."""

    name: str
    description: str
    kind: str  # cpu, gpu, igpu, accel or other
    memory_free: int  # bytes
    memory_total: int


class Meter:
    """Measures one ggml device, such as "CPU". Raises WindowError where ggml cannot use it.

    What is multiplied is what a model would have: llama.cpp's layout in memory, its kernels, its threads.
    """

    def __init__(self, device: str, n_threads: int) -> None:
        self._meter = _native.Meter(device, n_threads)
        self._types = {name: number for number, name, _, _ in _native.tensor_types()}

    def products(
        self, ggml_type: str, *, batch: int, milliseconds: int, memory: int, repack: bool = True
    ) -> Speed | None:
        """The best of several runs, at least three; None where the device cannot multiply such weights.

        batch: tokens in the matrix-matrix product.  milliseconds: for both products, set-up aside.
        memory: bytes of weights, at most; but one matrix at least (up to 16 MiB on the CPU, 64 on a GPU).
        repack: whether the weights get the layout of those held in memory, or keep the one of the file.
        Raises WindowError.
        """
        number = self._types.get(ggml_type)
        if number is None:
            return None
        try:
            measured = self._meter.products(number, repack, batch, milliseconds, memory)
        finally:
            _pass_on_log()
        return None if measured is None else Speed(*measured)

    def attention(self, n_tokens: int, *, depth: int, milliseconds: int) -> float | None:
        """Multiply-adds x 2 per second with which `n_tokens` tokens attend to `depth` positions.

        The cache is in f16 and flash attention off, as edged has it on CPUs. None where the device cannot do
        that. Raises WindowError.
        """
        measured = self._meter.attention(n_tokens, depth, milliseconds)
        return None if measured is None else float(measured)


def read_bandwidth(n_threads: int, milliseconds: int, memory: int) -> float:
    """Bytes per second of plain reading by `n_threads` threads, from `memory` bytes allocated for it.

    Raises WindowError.
    """
    return float(_native.read_bandwidth(n_threads, milliseconds, memory))


def devices() -> tuple[GgmlDevice, ...]:
    """What ggml can compute on here, the CPU included."""
    return tuple(GgmlDevice(*fields) for fields in _native.devices())


def system_info() -> str:
    """One line for people: which instruction sets and libraries ggml was built for."""
    return str(_native.system_info())


def route_log() -> None:
    """Keeps llama.cpp's log off the terminal. Importing llama_cpp undoes it; every load does it again."""
    _native.take_over_log()


def _pass_on_log() -> None:
    """llama.cpp's lines go to the log at debug level: what a user must know is in the exception."""
    for _level, text in _native.drain_log():
        _log.debug("%s", text)


def load_window(
    source: WindowSource,
    context: ContextOptions,
    n_threads: int,
    n_gpu_layers: int = 0,
    progress: Callable[[float], None] | None = None,
    rehearsal: bool = False,
    residency: Residency | None = None,
) -> NativeWindow:
    """Loads a window into memory. `n_gpu_layers` of its layers, the last ones, go to a ggml GPU backend.
    `residency` says which are streamed; without it libllama holds all of them in memory.

    `progress` is called from this thread with the share done, 0.0 to 1.0; an exception in it ends the
    load and is raised. A rehearsal reads no weights and takes no memory for them: such a window can only
    be closed. Raises WindowError.
    """
    try:
        window = _native.Window(
            source.first,
            source.last,
            source.n_embd,
            source.n_vocab,
            source.width,
            source.header,
            [
                (part.offset, part.length, None if part.path is None else str(part.path), part.file_offset)
                for part in source.segments
            ],
            _plain(source.embedding),
            _plain(source.layer_embedding),
            source.reads_tokens,
            source.carries_tokens,
            [astuple(tap) for tap in source.entries],
            [astuple(tap) for tap in source.captures],
            [astuple(factor) for factor in source.factors],
            n_ctx=context.n_ctx,
            n_seq_max=context.n_seq_max,
            n_ubatch=context.n_ubatch,
            n_threads=n_threads,
            kv_type=context.kv_type,
            flash_attention=context.flash_attention,
            n_gpu_layers=n_gpu_layers,
            residency=None if residency is None else residency.native(),
            progress=progress,
            rehearsal=rehearsal,
        )
    finally:
        _pass_on_log()
    return NativeWindow(window)


def _plain(table: EmbeddingTable | None) -> tuple[str, int, int, int, int] | None:
    if table is None:
        return None
    return str(table.path), table.file_offset, table.ggml_type, table.n_embd, table.n_vocab


class NativeWindow:
    """A loaded window; see the protocol `edged.backend.window.Window`.

    Calls from several threads wait for each other. Run all windows of a process in one thread where
    possible: OpenMP keeps a set of worker threads for every thread that calls it.
    """

    def __init__(self, window: _native.Window) -> None:
        self._window = window
        self._open = True

    @property
    def first(self) -> int:
        return int(self._window.first)

    @property
    def last(self) -> int:
        return int(self._window.last)

    @property
    def width(self) -> int:
        return int(self._window.width)

    @property
    def memory(self) -> WindowMemory:
        weights, kv, compute = self._window.memory
        return WindowMemory(weights=weights, kv=kv, compute=compute)

    @property
    def residency(self) -> ResidencyBytes:
        return ResidencyBytes(*self._window.residency)

    @property
    def streamed(self) -> tuple[int, ...]:
        """The layers that are read for every run, counted from the window's first."""
        return tuple(self._window.streamed)

    def stream(self, layers: Sequence[int], spare: int = 0) -> None:
        """Changes which layers are streamed; what the window computes stays the same.

        `spare`: bytes that tensors of these layers may take for good. Waits for the run in progress. Raises
        WindowError where a layer cannot be written to or read from the disk; the window goes on with the
        layers that it could place.
        """
        try:
            self._window.stream(list(layers), spare)
        finally:
            _pass_on_log()

    def run(self, batch: Batch, inputs: Tokens | Hidden) -> Hidden:
        return self._call(self._window.run, batch, inputs)

    def run_last(self, batch: Batch, inputs: Tokens | Hidden) -> Logits:
        return self._call(self._window.run_last, batch, inputs)

    def _call(
        self, method: Callable[..., npt.NDArray[np.float32]], batch: Batch, inputs: Tokens | Hidden
    ) -> npt.NDArray[np.float32]:
        arrays = (batch.seq_ids, batch.positions, batch.outputs, inputs)
        if not all(isinstance(array, np.ndarray) for array in arrays):
            raise WindowError("a batch and its inputs must be numpy arrays")
        try:
            return method(*arrays)
        except WindowError:
            _pass_on_log()
            raise

    def apply(self, op: KvOp) -> bool:
        try:
            match op.kind:
                case "remove":
                    return bool(self._window.remove(op.seq, op.p0, op.p1))
                case "copy":
                    self._window.copy(op.seq, op.target)
                case "keep":
                    self._window.keep(op.seq)
                case "clear":
                    self._window.clear()
                case _:
                    raise WindowError(f"unknown KV operation {op.kind!r}")
        except TypeError:  # from nanobind: a number that is no int64
            raise WindowError(f"not a KV operation: {op}") from None
        return True

    def cancel(self) -> None:
        """Makes the run in progress, if any, end with WindowError. From any thread."""
        self._window.cancel()

    @property
    def is_open(self) -> bool:
        return self._open

    def close(self) -> None:
        self._open = False
        self._window.close()
        _pass_on_log()
