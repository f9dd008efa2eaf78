"""The arithmetic of the figures about models larger than memory; and lines of results come back whole."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.measurement import Case, Measurement, append, latest, load
from benchmarks.residency import least_per_token
from benchmarks.residency_report import plots, table
from edged.planning.footprint import share_bytes
from edged.planning.plan import ContextOptions, Hop, Plan
from edged.planning.profile import ModelProfile

MIB = 2**20
CASE = Case(
    system="edged",
    model="m",
    model_bytes=1000,
    nodes=2,
    fits=80,
    limit=400,
    link="1gbit",
    delay_ms=0.0,
    disk_rate="",
    rounds=None,
    residency=True,
    threads=1,
)
LIBRARY = replace(CASE, system="llama.cpp", nodes=1, fits=40, link="", residency=False)
TAKEN = Measurement(
    CASE,
    token_s=(0.4, 0.2, 0.3),
    read_per_token=330.0,
    node_read_per_token=(220.0, 110.0),
    node_least_per_token=(200.0, 0.0),
    node_peak=(399, 300),
    counters={"edged_x_total": 3.0},
    tokens=(7, 8),
)


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "new" / "results.jsonl"
    append(file, TAKEN)
    append(file, Measurement(LIBRARY, problem="killed"))
    assert load(file) == [TAKEN, Measurement(LIBRARY, problem="killed")]


def test_the_last_measurement_of_a_case_counts() -> None:
    newer = replace(TAKEN, read_per_token=1.0)
    assert latest([TAKEN, Measurement(LIBRARY), newer]) == [newer, Measurement(LIBRARY)]


def test_medians_and_excess() -> None:
    assert TAKEN.tpot_s == 0.3
    assert TAKEN.worst_excess == pytest.approx(1.1)  # the node that need not read at all is not divided by
    assert TAKEN.least_per_token == 200.0
    assert Measurement(CASE, problem="x").tpot_s == float("inf")


def test_the_table_compares_with_llama_cpp_on_one_such_node() -> None:
    library = Measurement(LIBRARY, token_s=(0.9,))
    other = Measurement(replace(LIBRARY, limit=1), token_s=(9.0,))
    lines = table([library, other, TAKEN]).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "3.00 x" in lines[-1]
    assert " x |" not in lines[2]


def test_a_case_that_failed_says_why_in_its_line() -> None:
    assert "no | room" not in table([Measurement(CASE, problem="no | room")])
    assert "no / room" in table([Measurement(CASE, problem="no | room")])


def test_plots_are_well_formed(tmp_path: Path) -> None:
    written = plots(
        [TAKEN, replace(TAKEN, case=replace(CASE, fits=50)), Measurement(LIBRARY, token_s=(0.9,))], tmp_path
    )
    assert len(written) == 4
    for path in written:
        texts = [element.text for element in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")]
        assert {"edged, 2 nodes", "1gbit, rounds as planned", "llama.cpp, 1 node"} <= set(texts)


def test_the_least_is_what_the_budget_cannot_hold() -> None:
    model = ModelProfile(
        model="m",
        n_layers=4,
        n_embd=64,
        n_vocab=100,
        n_heads=4,
        boundaries=(1, 2, 3),
        layer_bytes=(100 * MIB,) * 4,
        embedding_bytes=MIB,
        output_bytes=10 * MIB,
        kv_bytes_per_token_layer=256,
        n_ctx_train=512,
    )
    context = ContextOptions(n_ctx=512, n_seq_max=1, n_ubatch=16)
    hops = (
        Hop(device="a", first=0, last=1),
        Hop(device="b", first=1, last=3),
        Hop(device="a", first=3, last=4),
    )
    plan = Plan(epoch=1, model="m", n_layers=4, hops=hops, context=context)
    needed = share_bytes(model, context, [(0, 1), (3, 4)])
    assert needed > 210 * MIB
    assert least_per_token(model, plan, "a", needed) == 0
    assert least_per_token(model, plan, "a", needed - 70 * MIB) == 70 * MIB
    assert least_per_token(model, plan, "a", 0) == 210 * MIB  # never more than its weights
    assert least_per_token(model, plan, "b", 0) == 200 * MIB
