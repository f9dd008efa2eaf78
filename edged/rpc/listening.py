"""Taking a TCP port for oneself alone, with a clear word when somebody has it."""

from __future__ import annotations

import errno
import socket

from edged.errors import PortTakenError, SettingsError


def listen(port: int) -> socket.socket:
    """A socket that listens on `port` (0: any) on every address, IPv6 and IPv4.

    Raises PortTakenError, SettingsError for a port that this user may not have.
    """
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("0.0.0.0", port))  # noqa: S104 - peers are elsewhere in the network
    except OSError as error:
        raise refusal(port, error) from None
    except OverflowError:
        raise SettingsError(f"{port} is no port: choose one from 1 to 65535") from None


def refusal(port: int, error: OSError) -> Exception:
    """What a failed bind means for a person."""
    if error.errno == errno.EADDRINUSE:
        return taken(port)
    if error.errno == errno.EACCES:
        return SettingsError(f"port {port} is reserved: choose one above 1023 with --port")
    return SettingsError(f"cannot listen on port {port}: {error.strerror}")


def taken(port: int) -> PortTakenError:
    return PortTakenError(f"port {port} is taken by another program: choose another one with --port")
