"""What is settled before a daemon starts: its ports, and which cluster it may enter."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edged.cluster.admission import Admission
from edged.cluster.identity import Identity, found_cluster, load, request_certificate
from edged.cluster.join import JoinRequest
from edged.daemon import run_daemon
from edged.errors import ClusterError, EdgedError, PortTakenError
from edged.node.belonging import leads, settle
from edged.node.ports import check_ports
from edged.settings import Settings, read_settings


@contextmanager
def taken() -> Iterator[int]:
    with socket.create_server(("", 0)) as other:
        yield int(other.getsockname()[1])


def two_free_ports() -> int:
    """The first of two in a row."""
    while True:
        with socket.create_server(("", 0)) as first:
            port = int(first.getsockname()[1])
            try:
                socket.create_server(("", port + 1)).close()
            except (OSError, OverflowError):
                continue
            return port


def settings(home: Path, **given: str) -> Settings:
    words = {"home": str(home), "port": str(two_free_ports()), "http": "off", "name": "nas", **given}
    return read_settings({f"EDGED_{key.upper()}": value for key, value in words.items()})


def refused_start(wanted: Settings) -> str:
    said: list[str] = []
    with pytest.raises(EdgedError) as caught:
        run_daemon(wanted, said.append)
    assert said == []
    return caught.value.message


@pytest.mark.parametrize("which", ["main", "join", "http"])
def test_a_taken_port_leaves_no_cluster_behind(tmp_path: Path, which: str) -> None:
    with taken() as port:
        given = {
            "main": {"port": str(port)},
            "join": {"port": str(port - 1)},
            "http": {"http": f"127.0.0.1:{port}"},
        }[which]
        assert f"port {port}" in refused_start(settings(tmp_path, **given))
    assert not (tmp_path / "identity").exists()


def test_a_member_needs_no_port_for_joining(tmp_path: Path) -> None:
    with taken() as port:
        wanted = settings(tmp_path, port=str(port - 1), join="edged-token")
        check_ports(wanted, leads(wanted))
        with pytest.raises(PortTakenError):
            check_ports(wanted, True)


def test_who_leads(tmp_path: Path) -> None:
    assert leads(settings(tmp_path))
    assert not leads(settings(tmp_path, join="edged-token"))
    found_cluster(tmp_path, "nas")
    assert leads(settings(tmp_path, join="edged-token"))


def token_of(other: Identity) -> str:
    return str(Admission(other).new_token())


def test_a_founder_alone_is_told_how_to_join_another_cluster(tmp_path: Path) -> None:
    own, other = found_cluster(tmp_path / "own", "nas"), found_cluster(tmp_path / "other", "nuc")
    with pytest.raises(ClusterError, match=f"no other device .* remove {own.home / 'identity'} and start"):
        settle(settings(own.home, join=token_of(other)), print)
    kept = load(own.home)
    assert kept is not None
    assert kept.fingerprint == own.fingerprint


def test_a_founder_of_others_is_warned_of_leaving_them(tmp_path: Path) -> None:
    own, other = found_cluster(tmp_path / "own", "nas"), found_cluster(tmp_path / "other", "nuc")
    admission = Admission(own)
    request = request_certificate(tmp_path / "pi", "pi").decode()
    secret = admission.new_token().secret.hex()
    admission.admit(JoinRequest(secret=secret, request=request, name="pi"), "127.0.0.1")
    with pytest.raises(ClusterError, match="would be left without a founder"):
        settle(settings(own.home, join=token_of(other)), print)


@pytest.mark.parametrize(("lost", "word"), [("certificates.pem", "belonged"), ("ca.key", "founded")])
def test_a_founder_without_its_papers_does_not_start(tmp_path: Path, lost: str, word: str) -> None:
    found_cluster(tmp_path, "nas")
    folder = tmp_path / "identity"
    (folder / lost).unlink()
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    message = refused_start(settings(tmp_path))
    assert f"{folder / lost} is damaged: it is missing, and this device {word}" in message
    assert f"give the cluster up: remove {folder}" in message
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
