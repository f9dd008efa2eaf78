"""How much the HTTP server takes on, and how long it waits: one frozen object."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    body_bytes: int = 8 * 2**20  # of one request; a prompt of a million tokens is about 4 MiB
    completions: int = 64  # answered or queued at once, over all requests; the next gets 429
    connections: int = 256  # open at once; the next gets 503 and is closed
    receive_s: float = 60.0  # for a whole request to arrive, headers and body
    stall_s: float = 60.0  # a reader that takes nothing for so long is cut off
    idle_s: float = 30.0  # a connection is kept open for the next request
    headers_s: float = 10.0  # a stream's status waits so long for the first token, so that errors keep theirs
    ping_s: float = 10.0  # a silent stream carries a comment this often
    close_s: float = 1.0  # for the last words of open streams when the server closes
