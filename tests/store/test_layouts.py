"""Which layers a window is made of: pure rules, no model."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from edged.store.architectures.cuts import cuts
from edged.store.architectures.kinds import layer_kinds
from edged.store.architectures.layout import Layouts
from edged.store.architectures.shape import Shape, main_layers
from edged.store.architectures.table import PLAIN, RULES, is_known, rule_of


def shape_of(architecture: str, n_layers: int, **hyperparameters: Any) -> Shape:
    metadata = {f"{architecture}.{key.replace('__', '.')}": value for key, value in hyperparameters.items()}
    return Shape(architecture, n_layers, n_layers, n_embd=64, n_vocab=100, metadata=metadata)


SHAPES = {
    "dense": shape_of("llama", 7),
    "unknown": shape_of("something-new", 7),
    "sliding": shape_of("gemma3", 26, attention__sliding_window=512),
    "sliding every second": shape_of("gpt-oss", 24, attention__sliding_window=128),
    "fixed period": shape_of("llama4", 48, interleave_moe_layer_step=2),
    "period that is a depth": shape_of("smallthinker", 32, attention__sliding_window=4096),
    "interval": shape_of("qwen3next", 48),
    "listed": shape_of("granitehybrid", 10, attention__head_count_kv=(0, 0, 4, 0, 0, 0, 4, 0, 0, 0)),
    "three kinds": shape_of(
        "nemotron_h",
        8,
        attention__head_count_kv=(0, 0, 0, 2, 0, 0, 2, 0),
        feed_forward_length=(0, 9, 0, 0, 9, 0, 0, 9),
    ),
    "no heads": shape_of("deci", 6, attention__head_count=(4, 0, 0, 8, 4, 0)),
    "layer 0 ahead": shape_of("rwkv7", 6),
    "known by its depth": shape_of("deepseek2", 60),
    "shared selection": shape_of(
        "hy_v4",
        6,
        attention__indexer__types=(1, 0, 0, 1, 0, 1),
        attention__indexer__top_k=9,
        context_length=9,
    ),
}


def _layouts(name: str) -> Layouts:
    return Layouts(SHAPES[name], rule_of(SHAPES[name]))


@pytest.mark.parametrize("name", SHAPES)
def test_every_window_is_complete_and_in_its_place(name: str) -> None:
    shape = SHAPES[name]
    rule = rule_of(shape)
    layouts = Layouts(shape, rule)
    kinds = layer_kinds(shape, rule)
    wanted = frozenset().union(*kinds)
    edges = [0, *layouts.boundaries(), shape.n_layers]
    for first, last in itertools.combinations(edges, 2):
        layout = layouts.window(first, last)
        assert layout.own == tuple(range(first, last))
        assert wanted == frozenset().union(*(kinds[layer] for layer in layout.layers))
        assert all(0 <= layer < shape.n_layers for layer in layout.layers)
        assert (first > 0 or not layout.before) and (last < shape.n_layers or not layout.after)
        for period in rule.periods:
            length = period if isinstance(period, int) else shape.integer(period)
            assert all(at % length == layer % length for at, layer in enumerate(layout.layers))
        if len(layout.own) < shape.n_layers:
            assert len(layout.layers) not in rule.counts


@pytest.mark.parametrize("name", SHAPES)
def test_windows_between_preferred_boundaries_have_no_layers_but_their_own(name: str) -> None:
    shape = SHAPES[name]
    layouts = Layouts(shape, rule_of(shape))
    preferred = layouts.preferred()
    assert set(preferred) <= set(layouts.boundaries())
    assert all(
        layouts.window(*edges).is_pure for edges in itertools.pairwise([0, *preferred, shape.n_layers])
    )


def test_nothing_is_filled_in_where_nothing_is_missing() -> None:
    assert _layouts("dense").preferred() == (1, 2, 3, 4, 5, 6)
    assert _layouts("interval").preferred() == tuple(range(4, 45, 4))
    assert _layouts("layer 0 ahead").preferred() == ()


def test_fillers_come_after_where_they_cost_no_time_and_else_before() -> None:
    layouts = _layouts("interval")
    assert (layouts.window(1, 2).before, layouts.window(1, 2).after) == ((), (3,))
    assert (layouts.window(47, 48).before, layouts.window(47, 48).after) == ((46,), ())


def test_a_selection_that_leaves_something_out_is_not_cut_off() -> None:
    fields = SHAPES["shared selection"].metadata
    partial = Shape("hy_v4", 6, 6, 64, 100, {**fields, "hy_v4.attention.indexer.top_k": 8})
    assert _layouts("shared selection").boundaries() == (1, 2, 3, 4, 5)
    assert Layouts(partial, rule_of(partial)).boundaries() == (3, 5)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (shape_of("gemma3n", 30), "by their number"),
        (shape_of("baichuan", 32), "of 32 layers"),
        (shape_of("command-r", 64), "of 64 layers and more"),
        (shape_of("kimi-k3", 13, attn_res__block_size=12), "look back"),
        (shape_of("granite", 4, deepstack_mapping=(-1, 0, -1, -1)), "images"),
        (shape_of("llama", 4, attention__causal=False), "later ones"),
        (shape_of("llama", 1), "one layer"),
    ],
    ids=lambda value: value.architecture if isinstance(value, Shape) else "",
)
def test_what_runs_whole_only_says_why(shape: Shape, reason: str) -> None:
    found = cuts(shape, ["token_embd.weight"])
    assert (found.boundaries, found.preferred) == ((), ())
    assert reason in found.reason


def test_prediction_heads_are_no_layers() -> None:
    assert (main_layers(47, 1), main_layers(47, None), main_layers(47, 47), main_layers(47, -1)) == (
        46,
        47,
        47,
        47,
    )


def test_no_architecture_is_in_the_table_twice() -> None:
    assert not PLAIN & set(RULES)
    assert is_known("llama") and is_known("gemma3") and not is_known("something-new")
