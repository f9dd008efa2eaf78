"""The founder's door for devices without a certificate: HTTPS with two routes, `GET /ca` and `POST /join`."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
import time
from typing import Any, Self
from weakref import WeakKeyDictionary

import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edged import PROTOCOL_VERSION, __version__
from edged.cluster.admission import Admission
from edged.cluster.identity import Identity
from edged.cluster.join import (
    HEADERS,
    MAX_BODY_BYTES,
    RELEASE_HEADER,
    VERSION_HEADER,
    JoinRefusal,
    JoinRequest,
)
from edged.errors import EdgedError, JoinRefusedError
from edged.rpc.bounded_listener import BoundedListener
from edged.rpc.listening import listen
from edged.rpc.quiet_loop import QuietErrors
from edged.rpc.status import MAX_VERSION, one_line

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 64  # also those that never finish, or never begin, the TLS handshake
MAX_PER_SOURCE = 16  # a device that joins needs one
HANDSHAKE_S = 4.0
FAREWELL_S = 1.0  # for the other end to close TLS as it should
LAST_WORD = HEADERS | {"connection": "close"}  # one answer each; what somebody still sends is not read
MAX_CONNECTION_S = 15.0  # a join takes well below a second
START_TIMEOUT_S = 10.0


class JoinServer:
    """Serves joining on `port` until closed. 0 lets the system choose; `port` then tells which."""

    def __init__(self, identity: Identity, admission: Admission, port: int) -> None:
        """Raises PortTakenError, or EdgedError if the server cannot start."""
        self._socket = BoundedListener(listen(port), MAX_CONNECTIONS, MAX_PER_SOURCE)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            _application(identity.ca_pem, admission),
            ssl_keyfile=identity.key_file,
            ssl_certfile=identity.certificate_file,
            ssl_context_factory=_tls13,
            lifespan="off",
            ws="none",
            loop="asyncio",
            http="h11",  # counts what an unfinished request may hold
            h11_max_incomplete_event_size=MAX_BODY_BYTES,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=1,
            proxy_headers=False,  # or a guesser could name any address
            server_header=False,
            access_log=False,
            log_config=None,
            log_level=logging.CRITICAL,  # strangers' broken requests are not worth a line each
        )
        self._server = _Server(config)
        self._thread = threading.Thread(target=self._run, name="edged-join", daemon=False)
        self._thread.start()
        if not self._server.ready.wait(START_TIMEOUT_S) or not self._server.started:
            self.close()
            raise EdgedError(f"the join server on port {self.port} did not start: see the log")

    def close(self) -> None:
        """Answers what is being answered (for a second at most), then frees the port. Idempotent."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=_Loop) as runner:
                runner.run(self._server.serve(sockets=[self._socket]))
        except (Exception, SystemExit):  # uvicorn leaves a failed start by sys.exit
            log.exception("the join server stopped")
        finally:
            self._server.ready.set()


class _Loop(asyncio.SelectorEventLoop):
    """uvicorn leaves asyncio's patience with TLS as it is: a minute for a handshake."""

    async def create_server(self, *args: Any, **kwargs: Any) -> asyncio.Server:
        kwargs |= {"ssl_handshake_timeout": HANDSHAKE_S, "ssl_shutdown_timeout": FAREWELL_S}
        return await super().create_server(*args, **kwargs)


class _Server(uvicorn.Server):
    """Says when it is ready, and cuts off whoever keeps a connection: uvicorn itself waits for ever."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()
        self._first_seen: WeakKeyDictionary[Any, float] = WeakKeyDictionary()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(QuietErrors("the join server"))
        await super().startup(sockets)
        self.ready.set()

    async def on_tick(self, counter: int) -> bool:
        now = time.monotonic()
        for connection in tuple(self.server_state.connections):
            if now - self._first_seen.setdefault(connection, now) > MAX_CONNECTION_S:
                connection.transport.abort()
        return await super().on_tick(counter)


def _tls13(_config: uvicorn.Config, default: object) -> ssl.SSLContext:
    context: ssl.SSLContext = default()  # type: ignore[operator]
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _application(ca_pem: bytes, admission: Admission) -> Starlette:
    async def ca(_: Request) -> Response:
        return Response(ca_pem, headers=LAST_WORD, media_type="application/x-pem-file")

    async def join(request: Request) -> Response:
        address = request.client.host if request.client else ""
        try:
            _check_version(request)
            answer = admission.admit(_parse(await _body(request)), address)
        except JoinRefusedError as refused:
            log.warning("refused a device from %s: %s", address, refused.message)
            return _refusal(403, refused.message)
        except Exception:  # also our own errors: they name files of this machine
            log.exception("a request to join from %s failed", address)
            return _refusal(500, "the founder failed to answer: its log says why")
        return Response(answer.model_dump_json(), headers=LAST_WORD, media_type="application/json")

    return Starlette(routes=[Route("/ca", ca), Route("/join", join, methods=["POST"])])


def _check_version(request: Request) -> None:
    theirs = request.headers.get(VERSION_HEADER, "")
    if theirs != str(PROTOCOL_VERSION):
        release = request.headers.get(RELEASE_HEADER, "of unknown version")
        shown = one_line(f"{release[:MAX_VERSION]} (protocol {theirs[:MAX_VERSION] or 'none'})")
        raise JoinRefusedError(
            f"the founder runs edged {__version__} (protocol {PROTOCOL_VERSION}), this device edged {shown}: "
            "install the same version on both"
        )


async def _body(request: Request) -> bytes:
    received = b""
    async for chunk in request.stream():
        received += chunk
        if len(received) > MAX_BODY_BYTES:
            raise JoinRefusedError("the request is too long")
    return received


def _parse(body: bytes) -> JoinRequest:
    try:
        return JoinRequest.model_validate_json(body)
    except ValidationError:
        raise JoinRefusedError("the request cannot be read") from None


def _refusal(status: int, message: str) -> Response:
    body = JoinRefusal(message=message).model_dump_json()
    return Response(body, status_code=status, headers=LAST_WORD, media_type="application/json")
