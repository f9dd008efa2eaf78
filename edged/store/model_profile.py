"""A cut model as the planner sees it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from math import prod

from edged.planning.model_profile import Fillers, LayerProfile, ModelProfile, TensorGroup
from edged.store.architectures.cuts import EMBEDDING
from edged.store.architectures.layout import Layouts
from edged.store.architectures.table import rule_of
from edged.store.ggml_types import layouts
from edged.store.manifest import Manifest, TensorEntry

_ENOUGH = 2  # a ring begins and ends at the head, so the least one has three windows


def model_profile(manifest: Manifest) -> ModelProfile:
    """Bytes, types and operations of every layer of `manifest`, and of its output side."""
    parts = manifest.by_name
    embedding = parts["embedding"].weight_bytes
    share = _expert_share(manifest)
    output = _output(manifest)
    layers = tuple(_layer(manifest, index, share) for index in range(manifest.n_layers))
    return ModelProfile(
        model=manifest.id,
        name=manifest.name,
        n_layers=manifest.n_layers,
        n_embd=manifest.n_embd,
        n_vocab=manifest.n_vocab,
        n_heads=_count(manifest, "attention.head_count"),
        boundaries=_boundaries(manifest),
        fillers=_fillers(manifest),
        whole_because=manifest.whole_because,
        layer_bytes=tuple(layer.nbytes for layer in layers),
        layers=layers,
        output=output,
        embedding_bytes=embedding,
        output_bytes=sum(group.nbytes for group in output),
        kv_bytes_per_token_layer=manifest.kv_bytes_per_token_layer,
        n_ctx_train=manifest.n_ctx_train,
        recurrent=manifest.recurrent,
        can_stream_output=_can_stream_output(manifest),
    )


def _layer(manifest: Manifest, index: int, expert_share: float) -> LayerProfile:
    tensors = manifest.layer(index).tensors
    return LayerProfile(
        groups=_groups(tensors, expert_share),
        kv_bytes_per_token=manifest.kv_bytes_per_token_layer,
        largest_tensor=max((tensor.nbytes for tensor in tensors), default=0),
    )


def _output(manifest: Manifest) -> tuple[TensorGroup, ...]:
    tensors: list[TensorEntry] = []
    if "output" in manifest.by_name:
        tensors += manifest.by_name["output"].tensors
    if manifest.tied:  # the table alone: other tensors of the input side stay with the first window
        tensors += (one for one in manifest.by_name["embedding"].tensors if one.name == EMBEDDING)
    return _groups(tensors, 1.0)


def _can_stream_output(manifest: Manifest) -> bool:
    """Where no layer looks at the tokens, the matrix is there for its product only."""
    shape = manifest.shape
    return bool(manifest.boundaries) and not rule_of(shape).tokens(shape)


def _groups(tensors: Iterable[TensorEntry], expert_share: float) -> tuple[TensorGroup, ...]:
    """One group per type, the experts' apart: a token uses a part of them only."""
    sums: dict[tuple[str, float], tuple[int, int]] = {}
    for tensor in tensors:
        layout = layouts().get(tensor.ggml_type)
        name = layout.name if layout is not None else ""
        share = expert_share if "_exps." in tensor.name else 1.0
        nbytes, weights = sums.get((name, share), (0, 0))
        sums[name, share] = (nbytes + tensor.nbytes, weights + prod(tensor.shape))
    return tuple(
        TensorGroup(type=name, share=share, nbytes=nbytes, weights=weights)
        for (name, share), (nbytes, weights) in sums.items()
    )


def _expert_share(manifest: Manifest) -> float:
    """The part of a layer's experts that one token uses; 1 for a model without."""
    experts = _count(manifest, "expert_count")
    return min(1.0, _count(manifest, "expert_used_count") / experts)


def _count(manifest: Manifest, key: str) -> int:
    """A whole number of the metadata, of the layer that has most; 1 where the file says nothing of it."""
    full = f"{manifest.architecture}.{key}"
    value = next((entry.value for entry in manifest.metadata if entry.key == full), 1)
    values = value if isinstance(value, tuple) else (value,)
    return max((int(count) for count in values if isinstance(count, int)), default=1) or 1


def _boundaries(manifest: Manifest) -> tuple[int, ...]:
    """Where a plan cuts: where windows cost nothing but their layers, if a ring finds enough such places."""
    return manifest.preferred if len(manifest.preferred) >= _ENOUGH else manifest.boundaries


def _fillers(manifest: Manifest) -> tuple[Fillers, ...]:
    """Of every window that a plan may make; none where its boundaries are the preferred ones."""
    cuts = _boundaries(manifest)
    if cuts == manifest.preferred:
        return ()
    layouts = Layouts(manifest.shape, rule_of(manifest.shape))
    whole = (0, manifest.n_layers)
    found = []
    for window in combinations((0, *cuts, manifest.n_layers), 2):
        layout = layouts.window(*window)
        if window != whole and not layout.is_pure:
            found.append(Fillers(first=window[0], last=window[1], before=layout.before, after=layout.after))
    return tuple(found)
