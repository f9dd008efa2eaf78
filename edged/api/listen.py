"""Binding the HTTP port, and the rule that beyond loopback a key is needed."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket

from edged.errors import PortTakenError, SettingsError
from edged.settings import HostPort

BACKLOG = 128


def bind(address: HostPort, api_key: str | None) -> list[socket.socket]:
    """Listening sockets, one per address that the host name stands for; all have the same port.

    Raises SettingsError (no such address; beyond loopback without a key; a key no client could send),
    PortTakenError.
    """
    if api_key is not None and not re.fullmatch(r"[!-~]+", api_key):
        raise SettingsError("the API key must be printable ASCII characters without spaces")
    found = _resolve(address)
    if api_key is None:
        for _, where in found:
            if not _is_loopback(where[0]):
                raise SettingsError(
                    f"{address} can be reached from other machines: set an API key, "
                    f"or use 127.0.0.1:{address.port}"
                )
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, where in found:
            port = sockets[0].getsockname()[1] if sockets else where[1]
            try:
                sockets.append(_listen(family, (where[0], port, *where[2:]), address))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error  # "localhost" is often ::1 as well, where IPv6 is off
    except OSError as error:
        _close(sockets)
        raise _explain(error, address) from None
    if not sockets:
        assert missing is not None
        raise _explain(missing, address) from None
    return sockets


def _resolve(address: HostPort) -> list[tuple[int, tuple[str, int, *tuple[int, ...]]]]:
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise SettingsError(f"cannot listen on {address}: {why}") from None
    unique = {(entry[0], entry[4]): None for entry in found}
    return [(family, (str(where[0]), int(where[1]), *map(int, where[2:]))) for family, where in unique]


def _listen(family: int, where: tuple[str, int, *tuple[int, ...]], address: HostPort) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # elsewhere this option would share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # "::" is all addresses of both kinds, as users expect; a name binds each of its own.
            both = address.host == "::"
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        listener.bind(where)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _is_loopback(text: str) -> bool:
    ip = ipaddress.ip_address(text.partition("%")[0])
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


def _explain(error: OSError, address: HostPort) -> SettingsError | PortTakenError:
    if error.errno == errno.EADDRINUSE:
        return PortTakenError(
            f"port {address.port} of {address.host} is taken by another program; stop it, "
            "or choose another port with --http HOST:PORT"
        )
    if error.errno == errno.EACCES:
        return SettingsError(f"{address}: this user may not listen there; choose a port above 1023")
    if error.errno == errno.EADDRNOTAVAIL:
        return SettingsError(f"{address.host} is not an address of this machine")
    return SettingsError(f"cannot listen on {address}: {error.strerror or error}")


def _close(sockets: list[socket.socket]) -> None:
    for listener in sockets:
        listener.close()
