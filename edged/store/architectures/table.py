"""One row per architecture that needs more than renumbering. To add an architecture, add a row.

`PLAIN` names those that need nothing else. Any other architecture is cut in the most general way, and its
windows are compared with the whole model when it is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edged.backend.source import Factor
from edged.store.architectures import derived
from edged.store.architectures.derived import Layers, Written
from edged.store.architectures.shape import Shape


@dataclass(frozen=True, slots=True)
class Pattern:
    """Every `period`-th layer attends to everything (the first of each period if `dense_first`)."""

    period: int
    dense_first: bool = False


@dataclass(frozen=True, slots=True)
class Lane:
    """One part of the state that windows hand on.

    read:  the tensor where it leaves a window; {last} is the number of its last layer, {next} one more.
    write: the tensor at which it enters the next, and is written over. "<name" is the first tensor that is
           computed from the weight of that name.
    into:  what is written over instead.
    only_with: a tensor outside the layers; in a model without it the state is written at "embd".
    read_at_end: the tensor where it leaves a window whose last layer is the last that is loaded.
    width: in units of the model's n_embd.
    first_only: it comes from the first window, the others hand it on.
    """

    read: str = "l_out-{last}"
    write: str = "embd"
    into: str = ""
    only_with: str = ""
    read_at_end: str = ""
    width: int = 1
    first_only: bool = False


LAYER_EMBEDDING_LENGTH = "embedding_length_per_layer_input"


def state(write: str = "embd", read: str = "l_out-{last}", width: int = 1) -> tuple[Lane, ...]:
    return (Lane(read, write, width=width),)


@dataclass(frozen=True, slots=True)
class Rule:
    """What a cut of one architecture takes care of.

    lanes:    what travels; the first lane is what a layer takes from the one before.
    periods:  what depends on a layer's number in code repeats so often (a number, or the key that has it), so
              a window keeps its place in the period.
    pattern:  the built-in pattern of sliding windows, where the file names none.
    slides:   whether the model has sliding windows at all.
    hybrid:   some layers are recurrent; `interval` is the built-in period of the others, `mlp_layers` says
              that there are layers of a third kind, with a feed-forward part only.
    kinds:    other kinds of layers of which every window must have one.
    after_0:  whether windows begin with a copy of layer 0, whose outcome is not used.
    begin:    the layer at which a window must begin so that another finds what it shares with earlier ones;
              `begins` whether that helps.
    neighbours: whether a window's layers must follow one another, fillers included.
    layer_embeddings: whether every layer has columns of `per_layer_token_embd` and rows of
              `per_layer_model_proj`; the former travel with the state.
    counts:   numbers of layers that a window must not have, since libllama takes them for another model.
    tokens:   the layers that look at tokens.
    dummies:  whether a window that yields no logits makes do with an output matrix of a few rows.
    unused:   tensors outside the layers that only layers which look at tokens use.
    written:  what libllama derives from the number of layers, written out.
    factors:  the same where no metadata can say it.
    refusal:  why a model runs whole only; empty where it can be cut.
    """

    lanes: tuple[Lane, ...] = (Lane(),)
    periods: tuple[int | str, ...] = ()
    pattern: Pattern | None = None
    slides: Callable[[Shape], bool] = derived.if_sliding
    hybrid: bool = False
    interval: int = 0
    mlp_layers: bool = False
    kinds: Callable[[Shape], dict[int, str]] = derived.alike
    after_0: Callable[[Shape], bool] = derived.never
    begin: Callable[[Shape, int], int] = derived.anywhere
    begins: Callable[[Shape, int], bool] = derived.at_any
    neighbours: bool = False
    layer_embeddings: bool = False
    counts: tuple[int, ...] = ()
    tokens: Callable[[Shape], frozenset[int]] = derived.no_tokens
    dummies: bool = True
    unused: tuple[str, ...] = ()
    written: Callable[[Shape, Layers], Written] = derived.nothing
    factors: Callable[[Shape, Layers], tuple[Factor, ...]] = derived.no_factors
    refusal: Callable[[Shape], str] = derived.no_refusal


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FIRST_VALUES = Lane(
    "<blk.0.time_mix_value.weight", "<blk.0.time_mix_value.weight", first_only=True
)  # every layer of RWKV 7 mixes in the values of the first
_MASKED = derived.because("it fills in masked text instead of continuing it")


WITH_LAYER_EMBEDDINGS = "with layer embeddings: "

RULES: dict[str, Rule] = {
    "afmoe": Rule(state("inp_embd_scaled"), periods=(4,), pattern=Pattern(4)),
    "arwkv7": Rule((Lane(), _FIRST_VALUES), after_0=derived.always),
    "baichuan": Rule(counts=(32, 40), refusal=derived.known_by_depth(32, 40)),
    "bailingmoe3": Rule(state("model.input_embed"), hybrid=True),
    "bloom": Rule(state("inp_norm-0")),
    "chameleon": Rule(dummies=False),
    "cohere2": Rule(pattern=Pattern(4)),
    "cohere2moe": Rule(pattern=Pattern(4, dense_first=True)),
    "command-r": Rule(refusal=derived.deep(64)),
    "deepseek2": Rule(counts=(26, 27, 47, 48), written=derived.low_rank_queries),
    "deepseek4": Rule(
        state("hc_init", "l_last-{last}", width=4), kinds=derived.compressed, tokens=derived.hash_routed
    ),
    "dots3note": Rule(kinds=derived.not_sliding),
    "dream": Rule(refusal=_MASKED),
    "ernie4_5-moe": Rule(periods=("interleave_moe_layer_step",)),
    "exaone-moe": Rule(pattern=Pattern(4)),
    "exaone4": Rule(slides=derived.never, counts=(64,), refusal=derived.known_by_depth(64)),
    "gemma": Rule(state("inp_scaled")),
    "gemma2": Rule(state("inp_scaled"), pattern=Pattern(2), factors=derived.by_head_of_27b(46)),
    "gemma3": Rule(state("inp_scaled"), pattern=Pattern(6), factors=derived.by_head_of_27b(62)),
    "gemma3n": Rule(refusal=derived.because("llama.cpp knows its layers by their number")),
    "gemma-embedding": Rule(refusal=derived.because("it makes embeddings, not text")),
    "gemma4": Rule(
        state("inp_scaled"),
        kinds=derived.not_sliding,
        begins=derived.before_shared_keys,
        written=derived.shared_keys,
    ),
    WITH_LAYER_EMBEDDINGS + "gemma4": Rule(
        # libllama projects the embedding for each layer, after the first has begun
        (Lane(write="inp_scaled"), Lane("inp_scaled", "pe_in-0", "inp_scaled", first_only=True)),
        kinds=derived.not_sliding,
        neighbours=True,
        begins=derived.before_shared_keys,
        written=derived.shared_keys,
        layer_embeddings=True,
    ),
    "glm5-next": Rule(
        state("hc_init", width=4),
        hybrid=True,
        begin=derived.at_own_indexer,
        begins=derived.finds_its_selection,
    ),
    "gpt-oss": Rule(pattern=Pattern(2)),
    "gpt2": Rule(state("inpL")),
    "granite": Rule(refusal=derived.deepstacked),
    "granite_swa": Rule(refusal=derived.deepstacked),
    "granitehybrid": Rule(hybrid=True),
    "granitemoe": Rule(refusal=derived.deepstacked),
    "hrm_text": Rule(refusal=derived.because("its layers are run several times over")),
    "hy_v4": Rule(
        state("hc_init", width=4), begin=derived.at_own_indexer, begins=derived.finds_its_selection
    ),
    "jamba": Rule(hybrid=True),
    "kimi-k3": Rule(
        (Lane(write="inp_embd"), Lane("inp_embd", "inp_embd", first_only=True)),
        periods=("attn_res.block_size",),
        hybrid=True,
        refusal=derived.banked,
    ),
    "kimi-linear": Rule(state("model.embed_tokens"), hybrid=True),
    "laguna": Rule(pattern=Pattern(4, dense_first=True)),
    "lfm2": Rule(state("model.embed_tokens"), hybrid=True),
    "lfm2moe": Rule(state("model.embed_tokens"), hybrid=True),
    "llada": Rule(refusal=_MASKED),
    "llada-moe": Rule(refusal=_MASKED),
    "llama4": Rule(
        periods=(4, "interleave_moe_layer_step"),
        pattern=Pattern(4),
        slides=derived.always,
        kinds=derived.full_attention,
        refusal=derived.without_chunks,
    ),
    "mellum": Rule(pattern=Pattern(4)),
    "minicpm": Rule(written=derived.scaled_residual),
    "minicpm3": Rule(state("inp_scaled"), factors=derived.by_root_of_depth),
    "minimax-01": Rule(hybrid=True, interval=8, counts=(1,), factors=derived.by_slope),
    "mpt": Rule((Lane(write="inpL", only_with="position_embd.weight"),)),
    "muse-glimmer": Rule(state("embd_norm"), pattern=Pattern(4)),
    "nanbeige": Rule(refusal=derived.looped),
    "nemotron_h": Rule(state(read="nemotron_h_block_out-{last}"), hybrid=True, mlp_layers=True),
    "nemotron_h_moe": Rule(state(read="nemotron_h_block_out-{last}"), hybrid=True, mlp_layers=True),
    "olmo2": Rule(pattern=Pattern(4)),
    "plamo2": Rule(state("embedding_output", "ffn_residual-{last}"), hybrid=True),
    "plamo3": Rule(pattern=Pattern(8)),
    "qwen35": Rule(state("model.input_embed"), hybrid=True, interval=4),
    "qwen35moe": Rule(state("model.input_embed"), hybrid=True, interval=4),
    "qwen3next": Rule(state("model.embed_tokens"), hybrid=True, interval=4),
    "qwen3vl": Rule(written=derived.no_deepstack),
    "qwen3vlmoe": Rule(written=derived.no_deepstack),
    "qwen4exp": Rule(
        state("hc_init", "l_last-{last}", width=4),
        hybrid=True,
        interval=4,
        tokens=derived.token_lookups,
        unused=("per_layer_token_embd.weight",),
        written=derived.ngram_layers,
    ),
    "qwen3tts": Rule(dummies=False),
    "rnd1": Rule(refusal=_MASKED),
    "rwkv6": Rule(state("<token_embd_norm.bias"), periods=("rescale_every_n_layers",)),
    "rwkv7": Rule((Lane(), _FIRST_VALUES), after_0=derived.always),
    "smallthinker": Rule(
        periods=(4,),
        pattern=Pattern(4, dense_first=True),
        counts=(4,),
        refusal=derived.known_by_depth(4),
    ),
    "smollm3": Rule(periods=(4,)),
    "starcoder": Rule(state("inpL")),
    "step35": Rule((Lane("attn_norm_in-{next}", "attn_norm_in-0", read_at_end="h_nextn"),)),
    "talkie": Rule((Lane(write="inp_norm"), Lane("inp_norm", "ffn_out-0", "inp_norm", first_only=True))),
}

# libllama takes `token_embd` where `output` is absent, so the last window can hold its output matrix under
# that name and needs no second one.
TIED_OUTPUT = _names(
    """
    afmoe arcee arctic bailingmoe3 bloom chameleon chatglm cogvlm cohere2moe command-r deci deepseek
    deepseek2 deepseek32 dots3note dream ernie4_5 ernie4_5-moe exaone exaone4 falcon falcon-h1 gemma gemma2
    gemma3 gemma4 glm-dsa glm4 glm4moe gpt2 granite granite_swa granitehybrid granitemoe grok grovemoe
    hunyuan-moe hunyuan_vl hy_v3 jais2 jamba laguna lfm2 lfm2moe llada llama llama4 maincoder mamba mamba2
    minicpm minicpm3 minimax-01 mistral3 mpt nanbeige olmo openelm phi3 plamo2 plamo3 plm qwen2 qwen2vl
    qwen3 qwen35 qwen35moe qwen3moe qwen3next qwen3vl qwen3vlmoe qwen4exp refact rnd1 seed_oss smallthinker
    smollm3 starcoder starcoder2
    """
)


# Compared with the whole model like those in RULES, and exact with nothing but renumbering.
PLAIN = _names(
    """
    apertus arcee arctic bailingmoe bailingmoe2 bitnet chatglm codeshell cogvlm dbrx deci deepseek
    deepseek32 dots1 ernie4_5 exaone falcon falcon-h1 glm-dsa glm4 glm4moe gptneox grok grovemoe
    hunyuan-dense hunyuan-moe hunyuan_vl hy_v3 internlm2 jais jais2 llama llama-embed maincoder mamba mamba2
    maple mimo2 minimax-m2 minimax-m3 mistral3 mistral4 nemotron olmo olmoe openelm orion paddleocr
    pangu-embedded phi2 phi3 phimoe plamo plm pockettts qwen qwen2 qwen2moe qwen2vl qwen3 qwen3moe refact
    rwkv6qwen2 seed_oss spark2_5 stablelm starcoder2 xverse
    """
)

_UNKNOWN = Rule(state("<token_embd.weight"), written=derived.unscaled)


def rule_of(shape: Shape) -> Rule:
    name = shape.architecture
    if shape.integer(LAYER_EMBEDDING_LENGTH) and WITH_LAYER_EMBEDDINGS + name in RULES:
        name = WITH_LAYER_EMBEDDINGS + name
    return RULES.get(name, _PLAIN if name in PLAIN else _UNKNOWN)


def has_layer_embeddings(architecture: str) -> bool:
    return WITH_LAYER_EMBEDDINGS + architecture in RULES


def is_known(architecture: str) -> bool:
    """Whether windows of this architecture have been compared with the whole model."""
    return architecture in PLAIN or architecture in RULES


_PLAIN = Rule()
