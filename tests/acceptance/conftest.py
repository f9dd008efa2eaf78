"""Homes and clusters for the acceptance tests; the end of every log goes into a failing test's report."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from tests.acceptance.cluster import Cluster, form_cluster
from tests.lab import Home, LabUnavailableError

_open_homes: list[Home] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "acceptance" in item.path.parts:
            item.add_marker(pytest.mark.root)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and "acceptance" in item.path.parts:
        for home in _open_homes:
            report.sections.append((f"logs of {home.name}", home.logs()))
    return report


def _home() -> Iterator[Home]:
    try:
        home = Home()
    except LabUnavailableError as missing:
        pytest.skip(str(missing))
    _open_homes.append(home)
    try:
        with home:
            yield home
    finally:
        _open_homes.remove(home)


@pytest.fixture
def home() -> Iterator[Home]:
    """A home for one test."""
    yield from _home()


@pytest.fixture(scope="module")
def shared_home() -> Iterator[Home]:
    """A home for all tests of a module."""
    yield from _home()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Three devices with the bundled model, for tests that leave it as they found it."""
    for home in _home():
        yield form_cluster(home)
