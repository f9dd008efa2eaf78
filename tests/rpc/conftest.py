from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edged.cluster import authority
from edged.cluster.identity import Identity, adopt, found_cluster, request_certificate
from tests.threads import no_thread_left


@pytest.fixture(autouse=True)
def threads_end() -> Iterator[None]:
    with no_thread_left():
        yield


@pytest.fixture(scope="module")
def founder(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return found_cluster(tmp_path_factory.mktemp("founder"), "nas")


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory, founder: Identity) -> Identity:
    home: Path = tmp_path_factory.mktemp("member")
    device, key = authority.read_request(request_certificate(home, "laptop"))
    assert founder.ca_key is not None
    certificate = authority.issue(founder.ca_key, founder.ca, device, key)
    return adopt(home, authority.certificate_pem(certificate), founder.ca_pem)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """The founder of another cluster."""
    return found_cluster(tmp_path_factory.mktemp("stranger"), "neighbour")
