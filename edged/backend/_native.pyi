"""What native/module.cpp binds."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

class Window:
    def __init__(
        self,
        first: int,
        last: int,
        n_embd: int,
        n_vocab: int,
        width: int,
        header: bytes,
        segments: Sequence[tuple[int, int, str | None, int]],
        embedding: tuple[str, int, int, int, int] | None,
        layer_embedding: tuple[str, int, int, int, int] | None,
        reads_tokens: bool,
        carries_tokens: bool,
        entries: Sequence[tuple[str, str, str, int, int]],
        captures: Sequence[tuple[str, str, str, int, int]],
        factors: Sequence[tuple[str, float, float]],
        *,
        n_ctx: int,
        n_seq_max: int,
        n_ubatch: int,
        n_threads: int,
        kv_type: str,
        flash_attention: str,
        n_gpu_layers: int,
        progress: Callable[[float], None] | None,
        rehearsal: bool = False,
    ) -> None: ...
    @property
    def first(self) -> int: ...
    @property
    def last(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def memory(self) -> tuple[int, int, int]: ...
    def run(
        self,
        seq_ids: npt.NDArray[np.int32],
        positions: npt.NDArray[np.int32],
        outputs: npt.NDArray[np.bool_],
        inputs: npt.NDArray[np.int32] | npt.NDArray[np.float32],
    ) -> npt.NDArray[np.float32]: ...
    def run_last(
        self,
        seq_ids: npt.NDArray[np.int32],
        positions: npt.NDArray[np.int32],
        outputs: npt.NDArray[np.bool_],
        inputs: npt.NDArray[np.int32] | npt.NDArray[np.float32],
    ) -> npt.NDArray[np.float32]: ...
    def remove(self, seq: int, p0: int, p1: int) -> bool: ...
    def copy(self, seq: int, target: int) -> None: ...
    def keep(self, seq: int) -> None: ...
    def clear(self) -> None: ...
    def cancel(self) -> None: ...
    def close(self) -> None: ...

def take_over_log() -> None: ...
def drain_log() -> list[tuple[int, str]]: ...
def llama_version() -> str: ...
def system_info() -> str: ...
def tensor_types() -> list[tuple[int, str, int, int]]: ...
def devices() -> list[tuple[str, str, str, int, int]]: ...
def read_bandwidth(n_threads: int, milliseconds: int, memory: int) -> float: ...

class Meter:
    def __init__(self, device: str, n_threads: int) -> None: ...
    def products(
        self, type: int, repack: bool, batch: int, milliseconds: int, memory: int
    ) -> tuple[float, float] | None: ...
    def attention(self, n_tokens: int, depth: int, milliseconds: int) -> float | None: ...
