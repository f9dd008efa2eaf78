"""A model by its shape: what a file under profiles/models says, and the profile that follows from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from edged.documents import Document
from edged.planning.model_profile import LayerProfile, ModelProfile, TensorGroup

# Bits per weight, block scales included (ggml's block formats).
BITS: dict[str, float] = {
    "f32": 32,
    "f16": 16,
    "bf16": 16,
    "q8_0": 8.5,
    "q6_K": 6.5625,
    "q5_K": 5.5,
    "q5_0": 5.5,
    "q5_1": 6,
    "q4_K": 4.5,
    "q4_0": 4.5,
    "q4_1": 5,
    "iq4_nl": 4.5,
    "mxfp4": 4.25,
}


class ModelFile(Document):
    """Shape of a decoder with grouped-query attention and a gated feed-forward part, dense or of experts."""

    name: str = ""
    n_layers: int = Field(ge=1, le=512)  # libllama's own limit
    n_embd: int = Field(ge=1, lt=2**31)
    n_ff: int = Field(default=0, ge=0, lt=2**31)  # of a dense layer
    n_heads: int = Field(ge=1, lt=2**31)
    n_kv_heads: int = Field(ge=1, lt=2**31)
    head_dim: int = Field(ge=1, lt=2**31)
    n_vocab: int = Field(ge=1, lt=2**31)
    n_ctx_train: int = Field(ge=16, lt=2**31)
    n_experts: int = Field(default=0, ge=0, lt=2**31)
    n_experts_used: int = Field(default=0, ge=0, lt=2**31)
    n_ff_expert: int = Field(default=0, ge=0, lt=2**31)
    n_ff_shared: int = Field(default=0, ge=0, lt=2**31)  # of experts that every token uses
    n_dense_layers: int = Field(default=0, ge=0, lt=2**31)  # the first so many have no experts
    tied: bool = False  # the embedding table is the output matrix too
    attention_type: str
    ffn_type: str
    better_type: str = ""  # of attn_v and ffn_down in the layers that `mix` chooses
    mix: Literal["none", "k_m"] = "none"  # k_m: as llama.cpp's Q4_K_M and Q5_K_M: see `_better`
    output_type: str
    boundaries: Literal["all", "none"] = "all"
    period: int = Field(default=1, ge=1, lt=2**31)  # cuts are preferred at multiples of it

    def profile(self, model: str) -> ModelProfile:
        layers = tuple(self._layer(index) for index in range(self.n_layers))
        unique = {layer: layer for layer in layers}
        layers = tuple(unique[layer] for layer in layers)
        table = self._group(self.output_type, self.n_embd * self.n_vocab)
        cuts = range(1, self.n_layers) if self.boundaries == "all" else ()
        return ModelProfile(
            model=model,
            name=self.name or model,
            n_layers=self.n_layers,
            n_embd=self.n_embd,
            n_vocab=self.n_vocab,
            n_heads=self.n_heads,
            boundaries=tuple(cuts),
            preferred=tuple(cut for cut in cuts if cut % self.period == 0) if self.period > 1 else (),
            can_stream_output=bool(cuts),
            layer_bytes=tuple(layer.nbytes for layer in layers),
            layers=layers,
            output=(table,),
            output_bytes=table.nbytes,
            embedding_bytes=table.nbytes,
            kv_bytes_per_token_layer=max(layer.kv_bytes_per_token for layer in layers),
            n_ctx_train=self.n_ctx_train,
        )

    def _layer(self, index: int) -> LayerProfile:
        better = self.better_type if self.mix == "k_m" and self._better(index) else ""
        kv = self.n_embd * self.n_kv_heads * self.head_dim
        groups = [
            self._group(self.attention_type, 2 * self.n_embd * self.n_heads * self.head_dim + kv),
            self._group(better or self.attention_type, kv),
        ]
        if self.n_experts and index >= self.n_dense_layers:
            expert = self.n_experts * self.n_embd * self.n_ff_expert
            share = self.n_experts_used / self.n_experts
            groups += [
                self._group(self.ffn_type, 2 * expert, share),
                self._group(better or self.ffn_type, expert, share),
                self._group("f32", self.n_experts * self.n_embd),
            ]
            if self.n_ff_shared:
                groups.append(self._group(self.ffn_type, 3 * self.n_embd * self.n_ff_shared))
        else:
            one = self.n_embd * self.n_ff
            groups += [self._group(self.ffn_type, 2 * one), self._group(better or self.ffn_type, one)]
        return LayerProfile(
            groups=_merged(groups),
            kv_bytes_per_token=2 * 2 * self.n_kv_heads * self.head_dim,
            largest_tensor=max(tensor.nbytes for tensor in self._single(index, better)),
        )

    def _single(self, index: int, better: str) -> Iterator[TensorGroup]:
        """The larger ones of a layer's tensors, each for itself."""
        yield self._group(self.attention_type, self.n_embd * self.n_heads * self.head_dim)
        experts = self.n_experts if index >= self.n_dense_layers else 0
        one = experts * self.n_embd * self.n_ff_expert if experts else self.n_embd * self.n_ff
        yield self._group(self.ffn_type, one)
        yield self._group(better or self.ffn_type, one)

    def _better(self, index: int) -> bool:
        """llama.cpp's choice for the K_M mixtures: the first and last eighth, and every third in between."""
        eighth = self.n_layers // 8
        return index < eighth or index >= 7 * self.n_layers // 8 or (index - eighth) % 3 == 2

    @staticmethod
    def _group(name: str, weights: int, share: float = 1.0) -> TensorGroup:
        if name not in BITS:
            raise ValueError(f"the type {name} is not known; known: {', '.join(BITS)}")
        return TensorGroup(type=name, nbytes=int(weights * BITS[name] / 8), weights=weights, share=share)


def _merged(groups: list[TensorGroup]) -> tuple[TensorGroup, ...]:
    """One group per type and share."""
    merged: dict[tuple[str, float], tuple[int, int]] = {}
    for group in groups:
        nbytes, weights = merged.get((group.type, group.share), (0, 0))
        merged[group.type, group.share] = (nbytes + group.nbytes, weights + group.weights)
    return tuple(
        TensorGroup(type=name, share=share, nbytes=nbytes, weights=weights)
        for (name, share), (nbytes, weights) in merged.items()
    )
