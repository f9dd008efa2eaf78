"""Joining a cluster, from the side of the device that wants in.

First `GET /ca` from whoever answers, believing nothing; the token says which authority it has to be. Then a
second connection that trusts only this authority and only its founder; there, at last, the secret.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NoReturn

import httpx
from cryptography import x509
from pydantic import Field, ValidationError

from edged import PROTOCOL_VERSION, __version__
from edged.cluster import authority, identity
from edged.cluster.identity import Identity
from edged.cluster.token import Token, parse
from edged.documents import Document
from edged.errors import JoinRefusedError, PeerLostError
from edged.rpc.channel import shown
from edged.rpc.status import MAX_VERSION

PORT_OFFSET = 1  # joining is served on the port after the daemon's own
VERSION_HEADER = "edged-protocol"
RELEASE_HEADER = "edged-version"
HEADERS = {VERSION_HEADER: str(PROTOCOL_VERSION), RELEASE_HEADER: __version__}
MAX_BODY_BYTES = 16 * 1024  # a certificate request is below 1 KiB
TIMEOUT_S = 10.0


class JoinRequest(Document):
    """Body of `POST /join`, as JSON."""

    secret: str = Field(max_length=256, repr=False)  # hex
    request: str = Field(max_length=8192)  # PEM certificate signing request
    name: str = Field(max_length=256)  # what people call the device


class JoinAnswer(Document):
    certificate: str  # PEM


class JoinRefusal(Document):
    message: str


def join(home: Path, token: str, host: str, port: int, name: str, timeout_s: float = TIMEOUT_S) -> Identity:
    """Makes this device a member of the cluster that `token` stands for; `port` is the founder's main port.

    Raises JoinRefusedError (token, version or cluster do not fit), PeerLostError (no answer), ClusterError
    (this device belongs to a cluster already).
    """
    wanted = parse(token)
    request = identity.request_certificate(home, name)
    url = httpx.URL(scheme="https", host=host, port=port + PORT_OFFSET, path="/")
    ca_pem, ca = _fetch_ca(url, wanted, timeout_s)
    body = JoinRequest(secret=wanted.secret.hex(), request=request.decode(), name=name)
    trusted = ssl.create_default_context(cadata=ca_pem.decode())
    reply = _exchange("POST", url.join("/join"), trusted, timeout_s, authority.founder_of(ca), body)
    try:
        answer = JoinAnswer.model_validate_json(reply)
    except ValidationError:
        raise JoinRefusedError("the founder's answer cannot be read: is it a newer edged?") from None
    return identity.adopt(home, answer.certificate.encode(), ca_pem)


def _fetch_ca(url: httpx.URL, wanted: Token, timeout_s: float) -> tuple[bytes, x509.Certificate]:
    """The authority's certificate, PEM and parsed. Raises JoinRefusedError unless it is the pinned one."""
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname = False
    anybody.verify_mode = ssl.CERT_NONE  # nothing is believed yet, and nothing secret is sent
    pem = _exchange("GET", url.join("/ca"), anybody, timeout_s)
    try:
        ca = x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise JoinRefusedError(f"{_place(url)} is no edged founder: it sent no certificate") from None
    found = authority.fingerprint(ca)
    if found != wanted.fingerprint:
        raise JoinRefusedError(
            f"{_place(url)} belongs to another cluster ({authority.short(found)}) than the token "
            f"({authority.short(wanted.fingerprint)}), or somebody stands in between; nothing secret was sent"
        )
    return authority.certificate_pem(ca), ca


def _exchange(
    method: str,
    url: httpx.URL,
    context: ssl.SSLContext,
    timeout_s: float,
    expected_device: str | None = None,
    body: Document | None = None,
) -> bytes:
    """One request on a connection of its own; the body of a 200 answer, at most MAX_BODY_BYTES of it."""
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    extensions = {"sni_hostname": authority.tls_name(expected_device)} if expected_device else {}
    content = body.model_dump_json().encode() if body is not None else None
    try:
        # trust_env off: neither a proxy nor a certificate store of the environment has a say at home
        with (
            httpx.Client(verify=context, trust_env=False, timeout=timeout_s) as client,
            client.stream(method, url, headers=HEADERS, content=content, extensions=extensions) as answer,
        ):
            received = b""
            for chunk in answer.iter_bytes():
                received += chunk
                if len(received) > MAX_BODY_BYTES:
                    raise JoinRefusedError(f"{_place(url)} is no edged founder: its answer is too long")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        _explain(error, url)
    _check_version(answer, url)
    if answer.status_code == httpx.codes.OK:
        return received
    try:
        raise JoinRefusedError(_one_line(JoinRefusal.model_validate_json(received).message))
    except ValidationError:
        raise JoinRefusedError(f"{_place(url)} refused with HTTP status {answer.status_code}") from None


def _check_version(answer: httpx.Response, url: httpx.URL) -> None:
    theirs = answer.headers.get(VERSION_HEADER, "")
    if not theirs:
        raise JoinRefusedError(f"{_place(url)} is no edged founder: give its --port, not another service's")
    if theirs != str(PROTOCOL_VERSION):
        release = answer.headers.get(RELEASE_HEADER, "unknown")[:MAX_VERSION]
        shown = _one_line(f"edged {release} (protocol {theirs[:MAX_VERSION]})")
        raise JoinRefusedError(
            f"the founder runs {shown}, this device {__version__} "
            f"(protocol {PROTOCOL_VERSION}): install the same version on both"
        )


def _explain(error: Exception, url: httpx.URL) -> NoReturn:
    """Turns a failed exchange into one line that says whose fault it is."""
    place = _place(url)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise JoinRefusedError(
                f"{place} did not prove to be the founder of the token's cluster; the secret was not sent"
            ) from None
        if isinstance(cause, ssl.SSLError):
            raise JoinRefusedError(
                f"{place} does not speak TLS 1.3: give the founder's --port, not another service's"
            ) from None
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.RemoteProtocolError | httpx.InvalidURL):
        raise JoinRefusedError(f"{place} is no edged founder: it does not speak HTTP as expected") from None
    if isinstance(error, httpx.TimeoutException):
        raise PeerLostError(f"{place} did not answer in time: is it on, and no firewall between?") from None
    raise PeerLostError(f"{place} cannot be reached: does edged run there, as the founder?") from None


def _place(url: httpx.URL) -> str:
    return shown(url.host, url.port or 0)


def _one_line(text: str) -> str:
    """What a stranger wrote, fit for a terminal."""
    return "".join(char if char.isprintable() else " " for char in text[:500])
