"""A listening socket that holds only so many connections, for ports that strangers reach.

Servers count requests, or connections after the TLS handshake. A connection that does neither costs a file
descriptor all the same, and a process that has none left can neither answer nor load. So this one counts
where connections begin: beyond a limit they are taken and closed at once.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import os
import socket
import time
from typing import Any
from weakref import WeakSet

log = logging.getLogger(__name__)

REFUSALS_AT_ONCE = 256  # then the event loop has its turn
QUIET_S = 60.0  # a flood is worth one line a minute
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class BoundedListener(socket.socket):
    """Takes over a listening socket. Non-blocking use only, from one thread, as an asyncio loop does."""

    def __init__(self, listening: socket.socket, most: int, most_per_source: int | None = None) -> None:
        """At most `most` connections open at once, and `most_per_source` of one IPv4 address or IPv6 network.

        `listening` is used up.
        """
        super().__init__(fileno=listening.detach())
        self.setblocking(False)
        self._most = most
        self._most_per_source = most_per_source
        self._open: WeakSet[_Connection] = WeakSet()
        self._said = -QUIET_S
        self._reserve: int | None = _spare()

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection that there is room for. Raises BlockingIOError if there is none."""
        for _ in range(REFUSALS_AT_ONCE):
            try:
                taken, address = super().accept()
            except OSError as error:
                if error.errno not in EXHAUSTED:
                    raise
                self._turn_away(error)
                continue
            connection = _Connection(taken, source(str(address[0])))
            if self._room_for(connection.source):
                self._open.add(connection)
                return connection, address
            connection.close()
            self._say(f"too many connections, now from {connection.source}")
        raise BlockingIOError(errno.EAGAIN, "more wait; the loop comes back for them")

    def close(self) -> None:
        super().close()
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None

    def _room_for(self, source: str) -> bool:
        sources = [one.source for one in self._open if one.fileno() >= 0]
        if len(sources) >= self._most:
            return False
        return self._most_per_source is None or sources.count(source) < self._most_per_source

    def _turn_away(self, error: OSError) -> None:
        """This process has no descriptor left: give up the one in reserve to take and close a connection.

        Left where it is it would be announced again and again, and its client would wait. Raises
        BlockingIOError if nobody waits.
        """
        self._say(f"no connection can be taken: {error.strerror}")
        if self._reserve is None:
            self._reserve = _spare()
            if self._reserve is None:
                raise error
        os.close(self._reserve)
        self._reserve = None
        try:
            super().accept()[0].close()
        except OSError as still:
            if still.errno not in EXHAUSTED:
                raise
            raise error from None
        finally:
            self._reserve = _spare()

    def _say(self, what: str) -> None:
        now = time.monotonic()
        if now - self._said >= QUIET_S:
            self._said = now
            log.warning("port %s: %s", self.getsockname()[1], what)


class _Connection(socket.socket):
    """An accepted socket that remembers whom it came from."""

    def __init__(self, taken: socket.socket, source: str) -> None:
        super().__init__(fileno=taken.detach())
        self.source = source


def source(address: str) -> str:
    """What counts as one source: an IPv4 address, or an IPv6 network (addresses cost nothing there)."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


def _spare() -> int | None:
    with contextlib.suppress(OSError):
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    return None
