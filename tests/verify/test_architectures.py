"""Small random models of the most used architectures: in windows, bit for bit the whole model's logits.

Every run takes a prompt in chunks, single tokens, a second sequence between them, and, where the model can
do that, a rollback. The sliding windows of 32 positions are shorter than the 48 that are computed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edged.verify.report import Report
from tests.models.decoders import decoders, write_decoder
from tests.verify.conftest import Verify

Write = Callable[..., Path]
RECURRENT = {
    *("mamba", "mamba2", "rwkv6", "rwkv7"),
    *(
        "falcon-h1",
        "granitehybrid",
        "jamba",
        "kimi-linear",
        "lfm2",
        "nemotron_h",
        "plamo2",
        "qwen35",
        "qwen3next",
    ),
}

WHOLE = {"gemma3n"}  # llama.cpp knows its layers by number


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return lambda *words, **named: write_decoder(tmp_path / "model.gguf", *words, **named)


def check(report: Report) -> None:
    assert report.exact, report.lines()
    assert report.cuts
    assert not report.refused


@pytest.mark.parametrize("name", [name for name in decoders() if name not in WHOLE])
def test_every_architecture_is_exact(name: str, verify: Verify, write: Write) -> None:
    decoder = decoders()[name]
    report = verify(write(name, "F16"), windows=(3, decoder.n_layers))
    check(report)
    assert report.architecture == decoder.architecture
    assert report.rolled_back == (name not in RECURRENT)
    assert [result.cut.n_windows for result in report.cuts] == [3, decoder.n_layers]


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_what_cannot_be_cut_runs_whole_and_says_why(name: str, verify: Verify, write: Write) -> None:
    report = verify(write(name))
    assert report.exact
    assert report.whole is not None
    assert report.whole.exact
    assert (report.cuts, report.boundaries) == ((), ())
    assert report.reason.startswith("it runs whole only: ")


@pytest.mark.parametrize("name", ["gemma4", "gemma4-dense"])
def test_layers_that_share_a_cache_stay_together(name: str, verify: Verify, write: Write) -> None:
    """The last three of six use the caches of layers 1 and 2."""
    report = verify(write(name, "F16", hyperparameters={"attention.shared_kv_layers": 3}), windows=(2,))
    check(report)
    assert report.boundaries == (1,)


@pytest.mark.parametrize("weights", ["F32", "Q8_0", "Q4_0", "Q4_K", "Q6_K", "IQ4_NL", "MXFP4"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3moe", "granitehybrid"])
def test_quantised_weights_are_exact(name: str, weights: str, verify: Verify, write: Write) -> None:
    check(verify(write(name, weights), windows=(3,)))


@pytest.mark.parametrize(
    ("kv_type", "flash_attention"), [("f16", "on"), ("q8_0", "on"), ("f32", "off"), ("q4_0", "on")]
)
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt-oss", "deepseek2", "jamba", "phi3"])
def test_other_caches_are_exact(
    name: str, kv_type: str, flash_attention: str, verify: Verify, write: Write
) -> None:
    report = verify(write(name, "Q8_0"), windows=(2, 6), kv_type=kv_type, flash_attention=flash_attention)
    check(report)
    assert (report.kv_type, report.flash_attention) == (kv_type, flash_attention)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "bloom", "mamba", "falcon"])
@pytest.mark.parametrize("weights", ["F16", "Q4_K"])
def test_tied_embeddings_are_exact(name: str, weights: str, verify: Verify, write: Write) -> None:
    assert not decoders()[name].tied
    check(verify(write(name, weights, tied=True), windows=(3,)))


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("gemma2", {"attention.sliding_window_pattern": [True, False] * 3}),
        ("gemma3", {"attention.sliding_window_pattern": 2}),
        ("gemma3", {"attention.sliding_window": None}),
        ("gpt-oss", {"attention.sliding_window_pattern": 3}),
        ("olmo2", {"attention.sliding_window": None}),
        ("qwen35", {"full_attention_interval": None, "attention.recurrent_layers": [True, False] * 3}),
        ("qwen3next", {"full_attention_interval": None, "attention.recurrent_layers": [True, False] * 3}),
        (
            "deepseek2",
            {"leading_dense_block_count": 1, "expert_weights_scale": 2.5, "expert_weights_norm": True},
        ),
        ("llama", {"attention.head_count_kv": [2] * 6, "feed_forward_length": [384] * 6}),
        ("granite", {"embedding_scale": None}),
        ("gemma4-dense", {"attention.head_count_kv": [2, 2, 2, 2, 2, 2]}),
        ("apertus", {f"=xielu.{key}": 0.5 for key in ("alpha_n", "alpha_p", "beta", "eps")}),
        ("llama", {"rope.scaling.type": "yarn", "rope.scaling.factor": 8.0}),
        ("deepseek2", {"leading_dense_block_count": 1, "rope.scaling.yarn_log_multiplier": 0.1}),
        ("minicpm", {"residual_scale": None, "embedding_scale": None, "logit_scale": None}),
        ("grok", {"embedding_scale": None, "attention.output_scale": None, "logit_scale": None}),
        ("phi3", {"rope.scaling.original_context_length": 4096}),
        ("starcoder2", {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_metadata_of_other_kinds_is_exact(
    name: str, changed: dict[str, object], verify: Verify, write: Write
) -> None:
    check(verify(write(name, "F16", hyperparameters=changed), windows=(2, 6)))
