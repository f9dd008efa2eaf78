"""The baseline: what the paper says of it."""

from __future__ import annotations

import pytest

from edged.planning import best, halda
from edged.planning.context import for_ring
from edged.planning.cost import Problem
from edged.planning.device_costs import Workload
from edged.planning.plan import ContextOptions
from edged.planning.profile_files import find, read_cluster, read_model

CONTEXT = for_ring(ContextOptions(n_ctx=1024, n_seq_max=1, n_ubatch=128))


def paper(model: str) -> Problem:
    cluster, shape = find("clusters", "paper"), find("models", model)
    assert cluster is not None and shape is not None
    return Problem(read_cluster(cluster), read_model(shape), CONTEXT, Workload())


def test_every_factor_of_the_layers_gives_equal_rounds() -> None:
    problem = paper("llama-3-60b")
    found = halda.assignments(problem)
    assert found
    for one in found:
        assert problem.model.n_layers % one.rounds == 0
        assert sum(one.windows) * one.rounds == problem.model.n_layers
        assert all(0 <= gpu <= window for gpu, window in zip(one.on_gpu, one.windows, strict=True))
        assert one.devices[0] == problem.head


def test_a_device_left_with_one_cpu_layer_is_dropped() -> None:
    for one in halda.assignments(paper("llama-3-8b")):
        kept = zip(one.devices[1:], one.windows[1:], one.on_gpu[1:], strict=True)
        assert all(window > 1 or gpu > 0 for _, window, gpu in kept)


@pytest.mark.parametrize("model", ["llama-3-8b", "llama-1-30b", "llama-3-45b"])
def test_overlap_is_no_worse_on_the_papers_cluster(model: str) -> None:
    problem = paper(model)
    baseline, ours = halda.best_ring(problem, "latency"), best.best_ring(problem, "latency")
    assert baseline is not None and ours is not None
    assert ours.token <= baseline.token * (1 + 1e-9)


def test_halda_says_nothing_on_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    assert halda.assignments(paper("llama-3-8b"))
    assert capfd.readouterr().out == ""
