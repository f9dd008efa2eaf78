from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edged.cluster import authority
from edged.cluster.identity import Identity, adopt, found_cluster, request_certificate
from tests.cluster.clock import Clock
from tests.cluster.household import Household
from tests.threads import no_thread_left


@pytest.fixture(autouse=True)
def threads_end() -> Iterator[None]:
    with no_thread_left():
        yield


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def founder(tmp_path: Path) -> Identity:
    return found_cluster(tmp_path / "founder", "nas")


@pytest.fixture
def make_member(tmp_path: Path, founder: Identity) -> Callable[[str], Identity]:
    """Members of the founder's cluster, admitted without a token."""

    def make(name: str) -> Identity:
        home = tmp_path / name
        device, key = authority.read_request(request_certificate(home, name))
        assert founder.ca_key is not None
        certificate = authority.issue(founder.ca_key, founder.ca, device, key)
        return adopt(home, authority.certificate_pem(certificate), founder.ca_pem)

    return make


@pytest.fixture
def member(make_member: Callable[[str], Identity]) -> Identity:
    return make_member("laptop")


@pytest.fixture
def household(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Household]]:
    monkeypatch.setattr("edged.cluster.coordinator.SETTLE_S", 0.01)
    made: list[Household] = []

    def make(*names: str, **kwargs: Any) -> Household:
        made.append(Household(*names, **kwargs))
        made[-1].coordinator.start()
        return made[-1]

    yield make
    for home in made:
        home.coordinator.close()
