"""The tensors and hyperparameters of small models, one function per family of architectures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A decoder's dimensions; the defaults make a model of some hundred kilobytes."""

    n_layers: int = 5
    n_embd: int = 64
    n_heads: int = 4
    n_kv_heads: int = 2
    n_ff: int = 96
    n_experts: int = 4
    n_experts_used: int = 2
    n_vocab: int = 288
    n_ctx: int = 512
    tied: bool = False  # no output matrix of its own, where the architecture allows that

    @property
    def head(self) -> int:
        return self.n_embd // self.n_heads

    @property
    def kv(self) -> int:
        return self.head * self.n_kv_heads


Tensor = tuple[str, tuple[int, ...]]  # shape in GGUF order: the fastest dimension first
Hyperparameters = dict[str, int | float | bool | list[int]]


@dataclass(frozen=True)
class Family:
    tensors: Callable[[Shape], Iterator[Tensor]]
    extra: Callable[[Shape], Hyperparameters]
    may_tie: bool = True


def _ends(shape: Shape, bias: bool = False, norm: bool = True) -> Iterator[Tensor]:
    yield "token_embd.weight", (shape.n_embd, shape.n_vocab)
    if norm:
        yield from _with_bias("output_norm", (shape.n_embd,), bias)
    if not shape.tied:
        yield "output.weight", (shape.n_embd, shape.n_vocab)


def _with_bias(name: str, shape: tuple[int, ...], bias: bool) -> Iterator[Tensor]:
    yield f"{name}.weight", shape
    if bias:
        yield f"{name}.bias", shape[-1:]


def _attention(shape: Shape, at: str, qkv_bias: bool = False, out_bias: bool = False) -> Iterator[Tensor]:
    yield from _with_bias(f"{at}.attn_q", (shape.n_embd, shape.n_embd), qkv_bias)
    yield from _with_bias(f"{at}.attn_k", (shape.n_embd, shape.kv), qkv_bias)
    yield from _with_bias(f"{at}.attn_v", (shape.n_embd, shape.kv), qkv_bias)
    yield from _with_bias(f"{at}.attn_output", (shape.n_embd, shape.n_embd), out_bias)


def _gated_ffn(shape: Shape, at: str) -> Iterator[Tensor]:
    yield f"{at}.ffn_gate.weight", (shape.n_embd, shape.n_ff)
    yield f"{at}.ffn_up.weight", (shape.n_embd, shape.n_ff)
    yield f"{at}.ffn_down.weight", (shape.n_ff, shape.n_embd)


def _plain_ffn(shape: Shape, at: str, bias: bool) -> Iterator[Tensor]:
    yield from _with_bias(f"{at}.ffn_up", (shape.n_embd, shape.n_ff), bias)
    yield from _with_bias(f"{at}.ffn_down", (shape.n_ff, shape.n_embd), bias)


def _experts(shape: Shape, at: str) -> Iterator[Tensor]:
    yield f"{at}.ffn_gate_inp.weight", (shape.n_embd, shape.n_experts)
    yield f"{at}.ffn_gate_exps.weight", (shape.n_embd, shape.n_ff, shape.n_experts)
    yield f"{at}.ffn_up_exps.weight", (shape.n_embd, shape.n_ff, shape.n_experts)
    yield f"{at}.ffn_down_exps.weight", (shape.n_ff, shape.n_embd, shape.n_experts)


def _llama(
    shape: Shape, qkv_bias: bool = False, qk_norm: bool = False, experts: str = ""
) -> Iterator[Tensor]:
    yield from _ends(shape)
    for index in range(shape.n_layers):
        at = f"blk.{index}"
        yield f"{at}.attn_norm.weight", (shape.n_embd,)
        yield from _attention(shape, at, qkv_bias)
        if qk_norm:
            yield f"{at}.attn_q_norm.weight", (shape.head,)
            yield f"{at}.attn_k_norm.weight", (shape.head,)
        yield f"{at}.ffn_norm.weight", (shape.n_embd,)
        if experts:
            yield from _experts(shape, at)
        else:
            yield from _gated_ffn(shape, at)
        if experts == "shared":
            yield f"{at}.ffn_gate_inp_shexp.weight", (shape.n_embd,)
            yield f"{at}.ffn_gate_shexp.weight", (shape.n_embd, shape.n_ff)
            yield f"{at}.ffn_up_shexp.weight", (shape.n_embd, shape.n_ff)
            yield f"{at}.ffn_down_shexp.weight", (shape.n_ff, shape.n_embd)


def _llama3(shape: Shape) -> Iterator[Tensor]:
    yield from _llama(shape)
    yield "rope_freqs.weight", (shape.head // 2,)


def _olmo(shape: Shape) -> Iterator[Tensor]:
    yield from _ends(shape, norm=False)
    for index in range(shape.n_layers):
        yield from _attention(shape, f"blk.{index}")
        yield from _gated_ffn(shape, f"blk.{index}")


def _olmo2(shape: Shape) -> Iterator[Tensor]:
    yield from _ends(shape)
    for index in range(shape.n_layers):
        at = f"blk.{index}"
        yield from _attention(shape, at)
        yield f"{at}.attn_q_norm.weight", (shape.n_embd,)
        yield f"{at}.attn_k_norm.weight", (shape.kv,)
        yield f"{at}.post_attention_norm.weight", (shape.n_embd,)
        yield from _gated_ffn(shape, at)
        yield f"{at}.post_ffw_norm.weight", (shape.n_embd,)


def _phi3(shape: Shape) -> Iterator[Tensor]:
    yield from _ends(shape)
    for index in range(shape.n_layers):
        at = f"blk.{index}"
        yield f"{at}.attn_norm.weight", (shape.n_embd,)
        yield f"{at}.attn_qkv.weight", (shape.n_embd, shape.n_embd + 2 * shape.kv)
        yield f"{at}.attn_output.weight", (shape.n_embd, shape.n_embd)
        yield f"{at}.ffn_norm.weight", (shape.n_embd,)
        yield f"{at}.ffn_up.weight", (shape.n_embd, 2 * shape.n_ff)
        yield f"{at}.ffn_down.weight", (shape.n_ff, shape.n_embd)
    yield "rope_factors_long.weight", (shape.head // 2,)
    yield "rope_factors_short.weight", (shape.head // 2,)


def _starcoder2(shape: Shape) -> Iterator[Tensor]:
    yield from _ends(shape, bias=True)
    for index in range(shape.n_layers):
        at = f"blk.{index}"
        yield from _with_bias(f"{at}.attn_norm", (shape.n_embd,), True)
        yield from _attention(shape, at, qkv_bias=True, out_bias=True)
        yield from _with_bias(f"{at}.ffn_norm", (shape.n_embd,), True)
        yield from _plain_ffn(shape, at, bias=True)


def _stablelm(shape: Shape) -> Iterator[Tensor]:
    yield from _ends(shape, bias=True)
    for index in range(shape.n_layers):
        at = f"blk.{index}"
        yield from _with_bias(f"{at}.attn_norm", (shape.n_embd,), True)
        yield from _attention(shape, at)
        yield from _with_bias(f"{at}.ffn_norm", (shape.n_embd,), True)
        yield from _gated_ffn(shape, at)


def _falcon(shape: Shape) -> Iterator[Tensor]:
    yield from _ends(shape, bias=True)
    for index in range(shape.n_layers):
        at = f"blk.{index}"
        yield from _with_bias(f"{at}.attn_norm", (shape.n_embd,), True)
        yield f"{at}.attn_qkv.weight", (shape.n_embd, shape.n_embd + 2 * shape.kv)
        yield f"{at}.attn_output.weight", (shape.n_embd, shape.n_embd)
        yield from _plain_ffn(shape, at, bias=False)


def _gptneox(shape: Shape) -> Iterator[Tensor]:
    yield from _ends(shape, bias=True)
    for index in range(shape.n_layers):
        at = f"blk.{index}"
        yield from _with_bias(f"{at}.attn_norm", (shape.n_embd,), True)
        yield from _with_bias(f"{at}.attn_qkv", (shape.n_embd, shape.n_embd + 2 * shape.kv), True)
        yield from _with_bias(f"{at}.attn_output", (shape.n_embd, shape.n_embd), True)
        yield from _with_bias(f"{at}.ffn_norm", (shape.n_embd,), True)
        yield from _plain_ffn(shape, at, bias=True)


def _mamba(shape: Shape) -> Iterator[Tensor]:
    inner, state, rank, conv = 2 * shape.n_embd, 16, 4, 4
    yield from _ends(shape)
    for index in range(shape.n_layers):
        at = f"blk.{index}"
        yield f"{at}.attn_norm.weight", (shape.n_embd,)
        yield f"{at}.ssm_in.weight", (shape.n_embd, 2 * inner)
        yield f"{at}.ssm_conv1d.weight", (conv, inner)
        yield f"{at}.ssm_conv1d.bias", (inner,)
        yield f"{at}.ssm_x.weight", (inner, rank + 2 * state)
        yield f"{at}.ssm_dt.weight", (rank, inner)
        yield f"{at}.ssm_dt.bias", (inner,)
        yield f"{at}.ssm_a", (state, inner)
        yield f"{at}.ssm_d", (inner,)
        yield f"{at}.ssm_out.weight", (inner, shape.n_embd)


def _rms(shape: Shape) -> Hyperparameters:
    return {"attention.layer_norm_rms_epsilon": 1e-5}


def _norm(shape: Shape) -> Hyperparameters:
    return {"attention.layer_norm_epsilon": 1e-5}


def _moe(shape: Shape) -> Hyperparameters:
    return {
        **_rms(shape),
        "expert_count": shape.n_experts,
        "expert_used_count": shape.n_experts_used,
        "expert_feed_forward_length": shape.n_ff,
    }


FAMILIES: dict[str, Family] = {
    "falcon": Family(_falcon, _norm),
    "gptneox": Family(_gptneox, lambda s: {**_norm(s), "use_parallel_residual": True}, may_tie=False),
    "granite": Family(
        _llama,
        lambda s: {
            **_rms(s),
            "logit_scale": 8.0,
            "residual_scale": 0.22,
            "embedding_scale": 12.0,
            "attention.scale": 0.0625,
        },
    ),
    "internlm2": Family(_llama, _rms, may_tie=False),
    "llama": Family(_llama3, _rms),
    "mamba": Family(
        _mamba,
        lambda s: {
            **_rms(s),
            "ssm.conv_kernel": 4,
            "ssm.inner_size": 2 * s.n_embd,
            "ssm.state_size": 16,
            "ssm.time_step_rank": 4,
        },
    ),
    "mistral3": Family(_llama, _rms),
    "olmo": Family(_olmo, lambda s: {**_norm(s), "attention.clamp_kqv": 8.0}),
    "olmo2": Family(_olmo2, _rms, may_tie=False),
    "phi3": Family(_phi3, lambda s: {**_rms(s), "rope.scaling.original_context_length": s.n_ctx // 4}),
    "qwen2": Family(lambda s: _llama(s, qkv_bias=True), _rms),
    "qwen2moe": Family(
        lambda s: _llama(s, qkv_bias=True, experts="shared"),
        lambda s: {**_moe(s), "expert_shared_feed_forward_length": s.n_ff},
        may_tie=False,
    ),
    "qwen3": Family(lambda s: _llama(s, qk_norm=True), _rms),
    "qwen3moe": Family(lambda s: _llama(s, qk_norm=True, experts="plain"), _moe),
    "stablelm": Family(_stablelm, _norm, may_tie=False),
    "starcoder2": Family(_starcoder2, _norm),
}
