"""Who does not belong gets nothing but a clear word, and no secret crosses the network or reaches a log."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from edged.cluster import token as tokens
from edged.settings import DEFAULT_HTTP_PORT, DEFAULT_PORT
from tests.acceptance.cluster import FLAGS, join
from tests.lab import Capture, Daemon, Device, Home

STRANGER = Path(__file__).with_name("stranger.py")
SHUT_OUT = {"UNAVAILABLE", "UNAUTHENTICATED"}


@pytest.fixture(scope="module")
def founder(shared_home: Home) -> Daemon:
    daemon = shared_home.device("founder").start_daemon(*FLAGS)
    daemon.wait_started()
    return daemon


@pytest.fixture(scope="module")
def member(shared_home: Home, founder: Daemon) -> Daemon:
    return join(founder, shared_home.device("member"))


@pytest.fixture(scope="module")
def other(shared_home: Home) -> Daemon:
    """The founder of another cluster on the same switch."""
    daemon = shared_home.device("other").start_daemon(*FLAGS)
    daemon.wait_started()
    return daemon


def device(daemon: Daemon) -> Device:
    place = daemon.place
    assert isinstance(place, Device)
    return place


def members(daemon: Daemon) -> set[str]:
    return {member.name for member in daemon.status().members}


def certificates(daemon: Daemon) -> tuple[Path, Path]:
    """Files of a daemon's certificate chain and key."""
    folder = daemon.place.home / "identity"
    return folder / "certificates.pem", folder / "device.key"


def authority_file(daemon: Daemon) -> Path:
    """The certificate of the daemon's authority alone, in a file."""
    marker = "-----BEGIN CERTIFICATE-----"
    chain = certificates(daemon)[0].read_text().split(marker)
    path = daemon.place.root / "authority.pem"
    path.write_text(marker + chain[-1])
    return path


def try_everything(caller: Daemon, callee: Daemon, *tls: str) -> dict[str, tuple[str, str]]:
    """Status and detail per method, of calls made on the caller's device."""
    target = f"{device(callee).address}:{DEFAULT_PORT}"
    done = caller.place.run([sys.executable, str(STRANGER), target, *tls])
    return {method: (code, detail) for method, (code, detail) in json.loads(done.stdout).items()}


def tls_name(daemon: Daemon) -> str:
    from edged.cluster import authority

    return authority.tls_name(daemon.status().device)


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a refused `edged start` ends with."""
    assert done.returncode == 1, done.stdout + done.stderr
    output = done.stdout + done.stderr
    assert "Traceback" not in output
    lines = [line for line in output.splitlines() if line.startswith("edged: ")]
    assert len(lines) == 1, output
    return lines[0]


def start_with(device: Device, *flags: str) -> subprocess.CompletedProcess[str]:
    return device.edged("start", "--name", device.name, *FLAGS, *flags, check=False, timeout=60)


def test_a_member_gets_through(founder: Daemon, member: Daemon) -> None:
    """The control: with the right certificate the calls get there, but for those of its own terminal."""
    chain, key = certificates(member)
    answers = try_everything(
        member, founder, tls_name(founder), str(authority_file(member)), str(chain), str(key)
    )
    reached = {method for method, (code, _) in answers.items() if code not in SHUT_OUT}
    assert {"/edged.v1.Store/Catalogue", "/edged.v1.Coordinator/Heartbeat", "/edged.v1.Ring/Pass"} <= reached
    for method in ("/edged.v1.FrontDoor/Token", "/edged.v1.FrontDoor/Stop"):
        code, detail = answers[method]
        assert code not in {"OK", "DEADLINE_EXCEEDED"}, f"{method} is for the local socket only: {detail}"
    assert founder.process.running


def test_a_plaintext_client_is_shut_out(founder: Daemon, member: Daemon, other: Daemon) -> None:
    answers = try_everything(other, founder)
    assert {code for code, _ in answers.values()} <= SHUT_OUT, answers
    for port in (DEFAULT_PORT, DEFAULT_PORT + 1):
        with device(other).namespace.connect(port, device(founder).address) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nHost: founder\r\n\r\n")
            plain.settimeout(5)
            reply = b""
            try:
                while piece := plain.recv(4096):
                    reply += piece
            except (TimeoutError, ConnectionResetError):
                pass
        assert b"HTTP/1" not in reply


def test_no_certificate_and_a_foreign_one_are_shut_out(founder: Daemon, other: Daemon) -> None:
    trust = (tls_name(founder), str(authority_file(founder)))
    chain, key = certificates(other)
    for own in ((), (str(chain), str(key))):
        answers = try_everything(other, founder, *trust, *own)
        assert {code for code, _ in answers.values()} <= SHUT_OUT, answers
    assert founder.process.running


def test_two_clusters_on_one_network_stay_apart(founder: Daemon, member: Daemon, other: Daemon) -> None:
    assert other.status().cluster != founder.status().cluster
    assert members(other) == {"other"}
    assert "other" not in members(founder)


def test_a_daemon_without_token_is_not_let_in_by_address(shared_home: Home, founder: Daemon) -> None:
    newcomer = shared_home.device("uninvited")
    daemon = newcomer.start_daemon(*FLAGS, "--peer", f"{device(founder).address}:{DEFAULT_PORT}")
    try:
        daemon.wait_started()
        assert members(daemon) == {"uninvited"}
        assert "uninvited" not in members(founder)
    finally:
        daemon.process.kill()


def test_a_spent_token(shared_home: Home, founder: Daemon) -> None:
    token = founder.token()
    first = shared_home.device("first").start_daemon("--join", token, *FLAGS)
    first.wait_until(lambda status: len(status.members) > 1, "joined cluster")
    assert first.stop() == 0
    late = shared_home.device("late")
    message = refused(start_with(late, "--join", token))
    assert "already used" in message
    assert "late" not in members(founder)


def test_a_wrong_token(shared_home: Home, founder: Daemon, other: Daemon) -> None:
    guesser = shared_home.device("guesser")
    good = tokens.parse(founder.token())
    guess = str(tokens.Token(good.fingerprint, secrets.token_bytes(tokens.SECRET_BYTES)))
    assert "token" in refused(start_with(guesser, "--join", guess))
    mistyped = guess[:-1] + ("A" if guess[-1] != "A" else "B")
    assert "mistyped" in refused(start_with(guesser, "--join", mistyped))
    assert "not a join token" in refused(start_with(guesser, "--join", "please"))
    peer = f"{device(founder).address}:{DEFAULT_PORT}"
    foreign = refused(start_with(guesser, "--join", other.token(), "--peer", peer))
    assert "another cluster" in foreign
    assert "guesser" not in members(founder) | members(other)


def test_no_secret_crosses_the_network_or_reaches_a_log(shared_home: Home, founder: Daemon) -> None:
    token = founder.token()
    secret = tokens.parse(token).secret
    pieces = [token, token.split("-")[2], secret.hex()]
    with Capture(shared_home) as capture:
        joiner = join_with(shared_home.device("watched"), token)
    assert capture.saw(b"_edged"), "the capture saw nothing of the daemons"
    assert capture.size > 5000
    for piece in pieces:
        assert not capture.saw(piece.encode())
    assert not capture.saw(secret)
    assert not capture.saw(b"PRIVATE KEY")
    logs = [*shared_home.root.glob("*/*.log"), *shared_home.root.glob("*/home/**/*log*")]
    texts = [log.read_text() for log in logs if log.is_file()]
    assert any("joined the cluster" in text for text in texts), "no log was looked at"
    for text in texts:
        assert "PRIVATE KEY" not in text
        assert not any(piece in text for piece in pieces)
    assert joiner.stop() == 0


def join_with(device: Device, token: str) -> Daemon:
    daemon = device.start_daemon("--join", token, *FLAGS)
    daemon.wait_until(lambda status: len(status.members) > 1, "joined cluster")
    return daemon


def test_keys_are_for_their_owner_only(founder: Daemon, member: Daemon) -> None:
    for daemon in (founder, member):
        identity = daemon.place.home / "identity"
        for secret in [identity, *identity.glob("*.key"), daemon.place.home / "run"]:
            assert secret.stat().st_mode & 0o077 == 0, f"{secret} can be read by others"
    assert not (member.place.home / "identity" / "ca.key").exists()


def test_http_is_for_this_device_unless_a_key_is_shown(
    shared_home: Home, founder: Daemon, other: Daemon
) -> None:
    with pytest.raises(ConnectionRefusedError):
        device(other).namespace.connect(DEFAULT_HTTP_PORT, device(founder).address)
    open_house = shared_home.device("open")
    daemon = open_house.start_daemon(*FLAGS, "--http", f"{open_house.address}:{DEFAULT_HTTP_PORT}")
    try:
        daemon.wait_started()
        url = f"http://{open_house.address}:{DEFAULT_HTTP_PORT}/v1/models"
        key = (open_house.home / "api-key").read_text().strip()

        def ask(headers: dict[str, str]) -> int:
            script = (
                "import sys, json, httpx\n"
                "print(httpx.get(sys.argv[1], headers=json.loads(sys.argv[2])).status_code)"
            )
            done = other.place.run([sys.executable, "-c", script, url, json.dumps(headers)])
            return int(done.stdout)

        assert ask({}) == httpx.codes.UNAUTHORIZED
        assert ask({"Authorization": "Bearer edged-wrong-key-000"}) == httpx.codes.UNAUTHORIZED
        assert ask({"Authorization": f"Bearer {key}"}) == httpx.codes.OK
        assert key not in daemon.log
    finally:
        daemon.process.kill()
