"""Joining over the founder's real HTTPS server, and everything that must not get in."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from edged import PROTOCOL_VERSION
from edged.cluster import authority, identity
from edged.cluster import join as joining
from edged.cluster import join_server as serving
from edged.cluster.admission import MAX_WRONG, WINDOW_S, Admission
from edged.cluster.identity import Identity, found_cluster, load, request_certificate
from edged.cluster.join import HEADERS, JoinAnswer, JoinRequest, join
from edged.cluster.join_server import JoinServer
from edged.cluster.token import Token
from edged.errors import ClusterError, JoinRefusedError, PeerLostError, PortTakenError

HOST = "127.0.0.1"


@pytest.fixture
def admission(founder: Identity) -> Admission:
    return Admission(founder)


@pytest.fixture
def server(founder: Identity, admission: Admission) -> Iterator[JoinServer]:
    with JoinServer(founder, admission, 0) as running:
        yield running


@pytest.fixture
def other(tmp_path: Path) -> Identity:
    return found_cluster(tmp_path / "other", "stranger")


def main_port(server: JoinServer) -> int:
    return server.port - 1


def ask(home: Path, secret: bytes, name: str = "pi") -> JoinRequest:
    return JoinRequest(secret=secret.hex(), request=request_certificate(home, name).decode(), name=name)


def test_a_device_joins(server: JoinServer, admission: Admission, founder: Identity, tmp_path: Path) -> None:
    token = str(admission.new_token())
    member = join(tmp_path / "pi", token, HOST, main_port(server), "pi")
    assert member.fingerprint == founder.fingerprint
    assert member.name == "pi"
    assert not member.is_founder
    again = load(tmp_path / "pi")
    assert again is not None
    assert again.certificate == member.certificate
    files = [*(tmp_path / "pi" / "identity").iterdir(), *(founder.home / "identity").iterdir()]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_a_spent_token_is_refused(server: JoinServer, admission: Admission, tmp_path: Path) -> None:
    token = str(admission.new_token())
    join(tmp_path / "pi", token, HOST, main_port(server), "pi")
    with pytest.raises(JoinRefusedError, match="already used: make a new one"):
        join(tmp_path / "nuc", token, HOST, main_port(server), "nuc")
    assert load(tmp_path / "nuc") is None


def test_a_wrong_secret_is_refused(server: JoinServer, founder: Identity, tmp_path: Path) -> None:
    guess = str(Token(founder.fingerprint, bytes(20)))
    with pytest.raises(JoinRefusedError, match="does not know this token"):
        join(tmp_path / "pi", guess, HOST, main_port(server), "pi")


def test_an_expired_token_is_refused(server: JoinServer, admission: Admission, tmp_path: Path) -> None:
    token = str(admission.new_token(lifetime_s=0))
    with pytest.raises(JoinRefusedError, match="expired: make a new one"):
        join(tmp_path / "pi", token, HOST, main_port(server), "pi")


def test_a_mistyped_token_does_not_even_connect(tmp_path: Path, admission: Admission) -> None:
    token = str(admission.new_token())
    typo = token[:-1] + ("A" if token[-1] != "A" else "B")
    with pytest.raises(JoinRefusedError, match="mistyped"):
        join(tmp_path / "pi", typo, HOST, 9, "pi")


def test_a_token_of_another_cluster_keeps_its_secret(
    server: JoinServer, other: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    exchange = joining._exchange

    def spy(method: str, *rest: Any) -> bytes:
        sent.append(method)
        return exchange(method, *rest)

    monkeypatch.setattr(joining, "_exchange", spy)
    token = str(Admission(other).new_token())
    with pytest.raises(JoinRefusedError, match=rf"another cluster .* \({other.cluster}\)"):
        join(tmp_path / "pi", token, HOST, main_port(server), "pi")
    assert sent == ["GET"]


def test_a_man_in_the_middle_with_the_right_authority_gets_no_secret(
    founder: Identity, member: Identity, admission: Admission, tmp_path: Path
) -> None:
    """A member passes on the real authority's certificate, but cannot prove to be the founder."""

    class Spy(Admission):
        asked = 0

        def admit(self, request: JoinRequest, address: str) -> JoinAnswer:
            self.asked += 1
            return super().admit(request, address)

    spy = Spy(founder)
    with (
        JoinServer(member, spy, 0) as middle,
        pytest.raises(JoinRefusedError, match="did not prove to be the founder"),
    ):
        join(tmp_path / "pi", str(admission.new_token()), HOST, main_port(middle), "pi")
    assert spy.asked == 0


def test_an_authority_that_is_only_claimed_gets_no_secret(
    founder: Identity, other: Identity, admission: Admission, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger repeats the founder's public certificate from /ca, over TLS of its own."""
    monkeypatch.setattr(Identity, "ca_pem", property(lambda _: authority.certificate_pem(founder.ca)))
    with JoinServer(other, Admission(other), 0) as middle:
        monkeypatch.undo()
        with pytest.raises(JoinRefusedError, match="did not prove to be the founder"):
            join(tmp_path / "pi", str(admission.new_token()), HOST, main_port(middle), "pi")


def test_another_version_is_refused_by_the_founder(
    server: JoinServer, admission: Admission, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "PROTOCOL_VERSION", PROTOCOL_VERSION + 1)
    with pytest.raises(
        JoinRefusedError, match=rf"protocol {PROTOCOL_VERSION + 1}\).*protocol {PROTOCOL_VERSION}\)"
    ):
        join(tmp_path / "pi", str(admission.new_token()), HOST, main_port(server), "pi")


def test_another_version_is_refused_by_the_joiner(
    server: JoinServer, admission: Admission, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "PROTOCOL_VERSION", PROTOCOL_VERSION + 1)
    with pytest.raises(
        JoinRefusedError, match=rf"protocol {PROTOCOL_VERSION}\).*protocol {PROTOCOL_VERSION + 1}\)"
    ):
        join(tmp_path / "pi", str(admission.new_token()), HOST, main_port(server), "pi")


def test_an_endless_version_is_not_repeated(
    server: JoinServer, admission: Admission, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by the founder nor by the joiner."""
    endless = "9" * 2000
    token = str(admission.new_token())
    for side in (joining, serving):
        with monkeypatch.context() as patch, pytest.raises(JoinRefusedError, match="same version") as caught:
            foreign = {serving.VERSION_HEADER: endless, serving.RELEASE_HEADER: endless}
            if side is joining:
                patch.setattr(joining, "HEADERS", foreign)
            else:
                patch.setattr(serving, "LAST_WORD", serving.LAST_WORD | foreign)
            join(tmp_path / "pi", token, HOST, main_port(server), "pi")
        assert "99999" in caught.value.message
        assert len(caught.value.message) < 300


def test_nobody_there(tmp_path: Path, admission: Admission) -> None:
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(PeerLostError, match="cannot be reached"):
        join(tmp_path / "pi", str(admission.new_token()), HOST, port - 1, "pi")
    with pytest.raises(PeerLostError, match="cannot be reached"):
        join(tmp_path / "pi", str(admission.new_token()), "no-such-host.invalid", port - 1, "pi")


def test_a_host_that_is_silent(tmp_path: Path, admission: Admission) -> None:
    with socket.create_server((HOST, 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(PeerLostError, match="did not answer in time"):
            join(tmp_path / "pi", str(admission.new_token()), HOST, port - 1, "pi", timeout_s=0.3)


def test_a_member_does_not_join_twice(server: JoinServer, admission: Admission, member: Identity) -> None:
    with pytest.raises(ClusterError, match="already belongs"):
        join(member.home, str(admission.new_token()), HOST, main_port(server), "laptop")


def test_a_copied_id_with_another_key_is_refused_and_the_token_stays_good(
    server: JoinServer, admission: Admission, tmp_path: Path
) -> None:
    pi = join(tmp_path / "pi", str(admission.new_token()), HOST, main_port(server), "pi")
    copy = tmp_path / "copy" / "identity"
    copy.mkdir(parents=True)
    (copy / "id").write_text(pi.device)
    token = str(admission.new_token())
    with pytest.raises(JoinRefusedError, match="with another key: was the home directory copied"):
        join(tmp_path / "copy", token, HOST, main_port(server), "pi")
    assert join(tmp_path / "nuc", token, HOST, main_port(server), "nuc").name == "nuc"


def test_nobody_becomes_the_founder(
    server: JoinServer, admission: Admission, founder: Identity, tmp_path: Path
) -> None:
    thief = tmp_path / "thief" / "identity"
    thief.mkdir(parents=True)
    (thief / "id").write_text(founder.device)
    with pytest.raises(JoinRefusedError, match="belongs to the cluster already"):
        join(tmp_path / "thief", str(admission.new_token()), HOST, main_port(server), "pi")


def test_the_register_survives_a_restart(founder: Identity, tmp_path: Path) -> None:
    admission = Admission(founder)
    admission.admit(ask(tmp_path / "pi", admission.new_token().secret), HOST)
    again = Admission(founder)
    device = (tmp_path / "pi" / "identity" / "id").read_text()
    forged = authority.new_request(authority.new_key(), device).decode()
    request = JoinRequest(secret=again.new_token().secret.hex(), request=forged, name="pi")
    with pytest.raises(JoinRefusedError, match="with another key"):
        again.admit(request, HOST)


def test_guessing_is_slowed_down_by_address(founder: Identity, tmp_path: Path) -> None:
    now = [0.0]
    admission = Admission(founder, monotonic=lambda: now[0])
    wrong = ask(tmp_path / "pi", bytes(20))
    right = ask(tmp_path / "pi", admission.new_token().secret)
    for _ in range(MAX_WRONG):
        with pytest.raises(JoinRefusedError, match="does not know"):
            admission.admit(wrong, "::ffff:10.0.0.9")
    with pytest.raises(JoinRefusedError, match="too many wrong tokens"):
        admission.admit(right, "10.0.0.9")
    admission.admit(ask(tmp_path / "nuc", admission.new_token().secret), "10.0.0.8")
    now[0] = WINDOW_S
    admission.admit(right, "10.0.0.9")


def test_ipv6_addresses_of_one_network_count_together(founder: Identity, tmp_path: Path) -> None:
    admission = Admission(founder, monotonic=lambda: 0.0)
    wrong = ask(tmp_path / "pi", bytes(20))
    for guess in range(MAX_WRONG):
        with pytest.raises(JoinRefusedError, match="does not know"):
            admission.admit(wrong, f"fd00::{guess}")
    with pytest.raises(JoinRefusedError, match="too many"):
        admission.admit(wrong, "fd00::abcd")


def test_a_guesser_learns_of_no_device(founder: Identity, tmp_path: Path) -> None:
    """An id that exists and one that does not are refused alike."""
    admission = Admission(founder)
    words = set()
    for device in (founder.device, "0" * 16):
        forged = authority.new_request(authority.new_key(), device).decode()
        with pytest.raises(JoinRefusedError) as caught:
            admission.admit(JoinRequest(secret="00" * 20, request=forged, name="pi"), HOST)
        words.add(caught.value.message)
    assert len(words) == 1


def test_only_the_founder_admits(member: Identity) -> None:
    with pytest.raises(ClusterError, match="only the founder"):
        Admission(member)


# ---- strangers at the port ------------------------------------------------------------------------------


def post(server: JoinServer, path: str = "/join", **how: Any) -> httpx.Response:
    anybody = ssl.create_default_context()
    anybody.check_hostname = False
    anybody.verify_mode = ssl.CERT_NONE
    with httpx.Client(verify=anybody, trust_env=False) as client:
        return client.post(f"https://{HOST}:{server.port}{path}", **how)


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff\xfe", b'{"secret": 1}', b"[" * 10_000, b"x" * 100_000])
def test_nonsense_is_refused_in_one_line(server: JoinServer, body: bytes) -> None:
    answer = post(server, headers=HEADERS, content=body)
    assert answer.status_code == 403
    assert answer.json()["message"] in ("the request cannot be read", "the request is too long")


def test_a_body_without_end_is_cut_off(server: JoinServer) -> None:
    served = 0

    def endless() -> Iterator[bytes]:
        nonlocal served
        while served < 2**26:
            served += 1024
            yield b"x" * 1024

    with contextlib.suppress(httpx.HTTPError):  # cut off while it was still sending
        assert post(server, headers=HEADERS, content=endless()).status_code == 403
    assert served < 2**26


def test_a_fault_of_the_founder_says_nothing_about_it(
    server: JoinServer,
    admission: Admission,
    founder: Identity,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(f"secret things in {founder.home}")

    monkeypatch.setattr(authority, "issue", fail)
    with (
        caplog.at_level(logging.ERROR),
        pytest.raises(JoinRefusedError, match=r"^the founder failed to answer: its log says why$"),
    ):
        join(tmp_path / "pi", str(admission.new_token()), HOST, main_port(server), "pi")
    assert "secret things" in caplog.text


def test_strangers_do_not_stop_the_server(server: JoinServer, admission: Admission, tmp_path: Path) -> None:
    for garbage in (
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\xff\xff" + b"\0" * 100,
        bytes(range(256)) * 64,
    ):
        with socket.create_connection((HOST, server.port)) as stranger:
            stranger.sendall(garbage)
    assert post(server, "/").status_code == 404
    assert post(server, "/ca").status_code == 405
    lingering = socket.create_connection((HOST, server.port))
    with lingering:
        assert join(tmp_path / "pi", str(admission.new_token()), HOST, main_port(server), "pi").name == "pi"


def test_a_connection_that_only_waits_is_cut_off(server: JoinServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "MAX_CONNECTION_S", 0.0)
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname = False
    anybody.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection((HOST, server.port), timeout=30) as raw,
        contextlib.suppress(ConnectionResetError, ssl.SSLEOFError),
        anybody.wrap_socket(raw) as tls,
    ):
        assert tls.recv(1) == b""


def test_a_handshake_that_never_begins_is_cut_off(
    founder: Identity, admission: Admission, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "HANDSHAKE_S", 0.1)
    with (
        JoinServer(founder, admission, 0) as server,
        socket.create_connection((HOST, server.port), timeout=30) as silent,
    ):
        assert silent.recv(1) == b""


def test_idle_connections_of_one_device_lock_nobody_out(
    server: JoinServer, admission: Admission, tmp_path: Path
) -> None:
    """Before TLS begins uvicorn does not count them, and each costs the founder a file descriptor."""
    with contextlib.ExitStack() as stack:
        greedy = [
            stack.enter_context(
                socket.create_connection((HOST, server.port), timeout=30, source_address=("127.0.0.2", 0))
            )
            for _ in range(serving.MAX_PER_SOURCE + 50)
        ]
        for refused in greedy[serving.MAX_PER_SOURCE :]:
            with contextlib.suppress(ConnectionResetError):
                assert refused.recv(1) == b""
        greedy[0].setblocking(False)
        with pytest.raises(BlockingIOError):  # it may still begin
            greedy[0].recv(1)
        assert join(tmp_path / "pi", str(admission.new_token()), HOST, main_port(server), "pi").name == "pi"


def test_the_port_is_freed_and_named_when_taken(founder: Identity, admission: Admission) -> None:
    with (
        JoinServer(founder, admission, 0) as first,
        pytest.raises(PortTakenError, match=f"port {first.port} is taken"),
    ):
        JoinServer(founder, admission, first.port)
    with JoinServer(founder, admission, first.port) as again:
        assert again.port == first.port


def test_a_web_server_is_no_founder(tmp_path: Path, admission: Admission, founder: Identity) -> None:
    """Plain HTTP, and HTTPS of something else."""
    with socket.create_server((HOST, 0)) as plain:

        def answer() -> None:
            connection, _ = plain.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(JoinRefusedError, match="does not speak TLS"):
            join(tmp_path / "pi", str(admission.new_token()), HOST, plain.getsockname()[1] - 1, "pi")
        thread.join()


def test_identity_is_untouched_by_a_refusal(server: JoinServer, founder: Identity, tmp_path: Path) -> None:
    guess = str(Token(founder.fingerprint, bytes(20)))
    with pytest.raises(JoinRefusedError):
        join(tmp_path / "pi", guess, HOST, main_port(server), "pi")
    assert identity.load(tmp_path / "pi") is None
    assert found_cluster(tmp_path / "pi", "pi").is_founder
