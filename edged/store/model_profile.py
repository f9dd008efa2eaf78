"""A cut model as the planner sees it."""

from __future__ import annotations

from edged.planning.profile import ModelProfile
from edged.store.architectures.cuts import EMBEDDING
from edged.store.manifest import Manifest

_ENOUGH = 2  # a ring begins and ends at the head, so the least one has three windows


def model_profile(manifest: Manifest) -> ModelProfile:
    """Bytes per layer, per input and per output side of `manifest`."""
    parts = manifest.by_name
    embedding = parts["embedding"].weight_bytes
    output = parts["output"].weight_bytes if "output" in parts else 0
    return ModelProfile(
        model=manifest.id,
        n_layers=manifest.n_layers,
        n_embd=manifest.n_embd,
        n_vocab=manifest.n_vocab,
        n_heads=_heads(manifest),
        boundaries=_boundaries(manifest),
        whole_because=manifest.whole_because,
        layer_bytes=tuple(manifest.layer(index).weight_bytes for index in range(manifest.n_layers)),
        embedding_bytes=embedding,
        output_bytes=output + (_table_bytes(manifest) if manifest.tied else 0),
        kv_bytes_per_token_layer=manifest.kv_bytes_per_token_layer,
        n_ctx_train=manifest.n_ctx_train,
    )


def _table_bytes(manifest: Manifest) -> int:
    tensors = manifest.by_name["embedding"].tensors
    return sum(tensor.nbytes for tensor in tensors if tensor.name == EMBEDDING)


def _boundaries(manifest: Manifest) -> tuple[int, ...]:
    """Where a plan cuts: where windows cost nothing but their layers, if a ring finds enough such places."""
    return manifest.preferred if len(manifest.preferred) >= _ENOUGH else manifest.boundaries


def _heads(manifest: Manifest) -> int:
    """Attention heads of the layer that has most; 1 where the file says nothing of them."""
    key = f"{manifest.architecture}.attention.head_count"
    value = next((entry.value for entry in manifest.metadata if entry.key == key), 1)
    heads = value if isinstance(value, tuple) else (value,)
    return max((int(count) for count in heads if isinstance(count, int)), default=1) or 1
