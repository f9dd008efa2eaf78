"""Whether the daemon can have its ports: asked before it enters a cluster, which is not undone so easily."""

from __future__ import annotations

from edged.api.listen import bind
from edged.rpc.listening import listen
from edged.settings import Settings, ensure_api_key


def check_ports(settings: Settings, leads: bool) -> None:
    """Takes and frees every port that will be needed; joining is served where the device leads.

    Raises PortTakenError, or SettingsError if this user may not have one, or HTTP not be served so.
    """
    listen(settings.port).close()
    if leads:
        listen(settings.join_port).close()
    if settings.http is not None:
        for listening in bind(settings.http, http_key(settings)):
            listening.close()


def http_key(settings: Settings) -> str | None:
    """The key that HTTP demands; None if it demands none. Raises SettingsError if it cannot be had."""
    if settings.http is None or settings.http.is_loopback:
        return settings.api_key
    return ensure_api_key(settings)
