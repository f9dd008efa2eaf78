"""Tables of indices among a model's weights: libllama looks up what they say without a look at the range."""

from __future__ import annotations

import numpy as np

from edged.errors import BrokenModelError
from edged.store.model_files import ModelFiles, SourceTensor

_ROUTES = ".ffn_gate_tid2eid.weight"
_I32 = 26  # ggml's number of the type


def check_index_tables(files: ModelFiles) -> None:
    """Raises BrokenModelError where a token is sent to an expert that there is not."""
    for name, tensor in files.tensors.items():
        if not name.endswith(_ROUTES):
            continue
        n_experts = files.hyperparameter("expert_count", 0)
        if tensor.info.ggml_type != _I32 or not _within(tensor, n_experts):
            raise BrokenModelError(
                f"{tensor.path.name} is not a usable model: {name} names experts beyond its {n_experts}"
            )


def _within(tensor: SourceTensor, limit: int) -> bool:
    try:
        values = np.fromfile(tensor.path, "<i4", tensor.info.nbytes // 4, offset=tensor.info.offset)
    except OSError as error:
        raise BrokenModelError(f"cannot read {tensor.path}: {error.strerror or error}") from None
    return bool(len(values) and values.min() >= 0 and values.max() < limit)
