"""Which cuts are tried."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from edged.verify.cuts import Cut, Refused, cut_into, usual_cuts


@pytest.mark.parametrize(
    ("windows", "n_layers", "allowed", "chosen"),
    [
        (1, 30, range(1, 30), ()),
        (2, 30, range(1, 30), (15,)),
        (3, 30, range(1, 30), (10, 20)),
        (2, 2, [1], (1,)),
        (4, 4, range(1, 4), (1, 2, 3)),
        (2, 48, range(4, 48, 4), (24,)),
    ],
)
def test_boundaries_are_spread(
    windows: int, n_layers: int, allowed: Sequence[int], chosen: tuple[int, ...]
) -> None:
    assert cut_into(windows, n_layers, allowed, "") == Cut(chosen)


def test_every_window_finds_a_place_among_few_boundaries() -> None:
    """Both ideal places (8 and 16 of 24) are nearest to the last boundary, which only one can have."""
    assert cut_into(3, 24, [2, 5, 7], "") == Cut((5, 7))
    assert cut_into(4, 24, [2, 5, 7], "") == Cut((2, 5, 7))


@pytest.mark.parametrize(
    ("windows", "allowed", "reason"),
    [
        (4, [1, 2], "it has 3 layers only"),
        (3, [2], "it can be cut in 2 windows at most: its layers go in pairs"),
        (2, [], "it cannot be cut: its layers go in pairs"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(windows: int, allowed: list[int], reason: str) -> None:
    assert cut_into(windows, 3, allowed, "its layers go in pairs") == Refused(windows, reason)


def test_the_usual_cuts() -> None:
    assert usual_cuts(6, [1, 2, 3, 4, 5], small=True) == [Cut((3,)), Cut((2, 4)), Cut((1, 2, 3, 4, 5))]
    assert usual_cuts(6, [1, 2, 3, 4, 5], small=False) == [Cut((3,)), Cut((2, 4))]
    assert usual_cuts(2, [1], small=True) == [Cut((1,))]
    assert usual_cuts(6, [], small=True) == []


def test_edges_cover_every_layer() -> None:
    assert Cut((1, 4)).edges(6) == [(0, 1), (1, 4), (4, 6)]
