"""uvicorn in a thread of its own, from a bound port to a clean end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from starlette.applications import Starlette

from edged.api.app import create_app
from edged.api.context import ApiContext
from edged.api.daemon_view import DaemonView
from edged.api.guarded_protocol import protocol_with
from edged.api.limits import HttpLimits
from edged.api.listen import bind
from edged.errors import DaemonError
from edged.rpc.bounded_listener import BoundedListener
from edged.rpc.quiet_loop import QuietErrors
from edged.serving.generation import Generator
from edged.settings import HostPort

WORKERS = 4  # threads that ask the daemon, so that the loop never waits

DATE_S = 1.0  # how old the Date header may grow


class HttpServer:
    """`start` binds and serves; `close` ends all answers, and leaves no thread and no socket."""

    def __init__(
        self,
        generator: Generator,
        daemon: DaemonView,
        address: HostPort,
        api_key: str | None = None,
        limits: HttpLimits | None = None,
    ) -> None:
        self._generator = generator
        self._daemon = daemon
        self._wanted = address
        self._api_key = api_key
        self._limits = limits or HttpLimits()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._address = address

    @property
    def address(self) -> HostPort:
        """Where it listens: the real port, once started, where 0 was asked for."""
        return self._address

    def start(self) -> None:
        """Returns when connections are accepted. Raises SettingsError, PortTakenError, DaemonError."""
        # Beyond the limit a client is told so; beyond its double it is not even heard.
        most = self._limits.connections * 2
        sockets = [BoundedListener(one, most) for one in bind(self._wanted, self._api_key)]
        self._address = HostPort(self._wanted.host, sockets[0].getsockname()[1])
        app = create_app(self._generator, self._daemon, self._api_key, self._limits)
        self._server = server = _Server(app, self._limits)
        self._thread = threading.Thread(target=_run, args=(server, sockets), name="edged-http")
        self._thread.start()
        server.settled.wait()
        if not server.started:
            self.close()
            raise DaemonError(f"HTTP could not be started on {self._address}")

    def close(self) -> None:
        """Answers under way end with an error at once; idempotent.

        A request that the head is still taking in (it loads its model first) ends when the head closes.
        """
        if self._server is not None:
            self._server.stop()
        if self._thread is not None:
            self._thread.join()
        if self._server is not None:
            self._server.context.threads.close(self._limits.close_s)
        self._server = self._thread = None


class _Server(uvicorn.Server):
    def __init__(self, app: Starlette, limits: HttpLimits) -> None:
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http=protocol_with(limits),
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level=logging.CRITICAL,  # errors are answered and logged by `edged.api`, in one line
            access_log=False,
            proxy_headers=False,  # nobody's word on where a request came from
            server_header=False,
            timeout_keep_alive=max(1, round(limits.idle_s)),
            timeout_graceful_shutdown=max(1, round(limits.close_s * 5)),
        )
        super().__init__(config)
        self.settled = threading.Event()  # started, or never will
        self.context: ApiContext = app.state.context
        self._close_s = limits.close_s
        self._loop: asyncio.AbstractEventLoop | None = None

    def stop(self) -> None:
        """From any thread."""
        self.should_exit = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended already
                self._loop.call_soon_threadsafe(self.context.closing.set)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(QuietErrors("HTTP"))
        self._loop.set_default_executor(ThreadPoolExecutor(WORKERS, thread_name_prefix="edged-http-worker"))
        await super().startup(sockets)
        self.settled.set()

    async def main_loop(self) -> None:
        """uvicorn's looks ten times a second whether to end; this one is told."""
        while not await self.on_tick(0):  # 0: also renew the Date header
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.context.closing.wait(), DATE_S)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.context.closing.set()
        cut = asyncio.get_running_loop().call_later(self._close_s, self._cut_off)
        try:
            await super().shutdown(sockets)
        finally:
            cut.cancel()
            self._cut_off()
            await asyncio.sleep(0)  # in which the transports close their sockets

    def _cut_off(self) -> None:
        """Connections whose clients have not taken the end of their answer."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def _run(server: _Server, sockets: list[socket.socket]) -> None:
    try:
        server.run(sockets)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a thread has nobody to raise to
        logging.getLogger(__name__).error("HTTP ended: %s", error)
    finally:
        server.settled.set()
        for listener in sockets:
            listener.close()
