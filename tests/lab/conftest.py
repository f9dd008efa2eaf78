"""A home for one test of the lab."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import Home, LabUnavailableError


@pytest.fixture
def home() -> Iterator[Home]:
    try:
        emulated = Home()
    except LabUnavailableError as missing:
        pytest.skip(str(missing))
    with emulated:
        yield emulated
