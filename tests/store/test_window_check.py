"""An unknown architecture is cut only if its windows give what the whole model gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.store import compose
from edged.store.architectures.shape import Shape
from edged.store.architectures.table import Rule, is_known, state
from edged.store.catalogue import Catalogue
from edged.store.importer import import_model
from edged.store.manifest import Manifest
from edged.store.window_check import why_not_in_windows

MEMORY = 2**30


def use(monkeypatch: pytest.MonkeyPatch, rule: Rule) -> None:
    def rule_of(_shape: Shape) -> Rule:
        return rule

    monkeypatch.setattr(compose, "rule_of", rule_of)


def test_good_windows_have_nothing_against_them(small: tuple[Catalogue, Manifest]) -> None:
    catalogue, manifest = small
    assert why_not_in_windows(manifest, catalogue, MEMORY) == ""


def test_the_most_general_rule_works(
    small: tuple[Catalogue, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue, manifest = small
    use(monkeypatch, Rule(state("<token_embd.weight")))
    assert why_not_in_windows(manifest, catalogue, MEMORY) == ""


def test_windows_that_differ_are_found(
    small: tuple[Catalogue, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue, manifest = small
    use(monkeypatch, Rule(state(read="ffn_inp-{last}")))
    assert "differ from the whole model" in why_not_in_windows(manifest, catalogue, MEMORY)
    assert why_not_in_windows(manifest, catalogue, memory=0) == ""


def test_windows_without_the_tensor_are_found(
    small: tuple[Catalogue, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue, manifest = small
    use(monkeypatch, Rule(state(read="no_such_tensor-{last}")))
    assert "has no tensor no_such_tensor-0" in why_not_in_windows(manifest, catalogue, MEMORY)


@pytest.mark.parametrize(("why", "n_boundaries"), [("", 4), ("its windows differ", 0)])
def test_an_import_asks_for_unknown_architectures(
    why: str,
    n_boundaries: int,
    small_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    untried: None,
) -> None:
    asked: list[str] = []

    def is_llama_known(architecture: str) -> bool:
        asked.append(architecture)
        return False

    assert is_known("llama")
    monkeypatch.setattr("edged.store.architectures.table.is_known", is_llama_known)
    monkeypatch.setattr("edged.store.probe.why_not_in_windows", lambda *_: why)
    manifest = import_model(small_file, Catalogue(tmp_path))
    assert asked == ["llama"]
    assert (len(manifest.boundaries), manifest.whole_because) == (n_boundaries, why)
