"""The head between two models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.errors import OverloadedError
from edged.planning.plan import Hop, Plan
from edged.serving.head import Head
from edged.store.manifest import Manifest
from tests.serving.bench import CONTEXT, ask, read
from tests.serving.fake_ring import FakeRing, HistoryModel


@pytest.fixture
def head(vocab_path: Path, manifest: Manifest) -> Iterator[Head]:
    model = HistoryModel(manifest.n_vocab, CONTEXT.n_seq_max, CONTEXT.n_ctx)
    ring = FakeRing(model, lambda *result: made.deliver(*result))  # noqa: PLW0108 - made below
    made = Head(lambda _: vocab_path, lambda: ring)
    yield made
    made.close()
    ring.close()


def plan_of(manifest: Manifest) -> Plan:
    hops = (Hop(device="h", first=0, last=manifest.n_layers),)
    return Plan(epoch=1, model=manifest.id, n_layers=manifest.n_layers, hops=hops, context=CONTEXT)


def test_a_request_is_answered_by_its_model_or_not_at_all(head: Head, manifest: Manifest) -> None:
    other = Manifest.model_validate(manifest.model_dump() | {"name": "other", "n_ctx_train": 77})
    assert other.id != manifest.id
    head.attach(manifest, plan_of(manifest))
    assert read(head.generate(ask(max_tokens=3), manifest))[2].finish_reason == "length"
    with pytest.raises(OverloadedError, match="instead of other"):
        head.generate(ask(), other)
    head.attach(other, plan_of(other))
    with pytest.raises(OverloadedError, match="instead of smol"):
        head.generate(ask(), manifest)


def test_before_the_first_model_nothing_is_answered(head: Head, manifest: Manifest) -> None:
    with pytest.raises(OverloadedError):
        head.generate(ask(), manifest)
