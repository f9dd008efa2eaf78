"""A cable with a delay: passes Ethernet frames between two interfaces, each a while after it came.

`netem` would do it in the kernel, but is not in every kernel. Runs as a process of its own, by path and with
nothing but the standard library:

    python relay.py NEAR FAR DELAY_MS JITTER_MS

Frames keep their order, as on a cable: a late one holds up those behind it.
"""

from __future__ import annotations

import random
import select
import socket
import sys
import time
from collections import deque

ETH_P_ALL = 0x0003
SOL_PACKET = 263
PACKET_VNET_HDR = 15
PACKET_IGNORE_OUTGOING = 23
SO_RCVBUFFORCE = 33
SO_SNDBUFFORCE = 32
BUFFER = 16 * 2**20
FRAME = 2**17  # more than the largest frame: the kernel passes up to 64 KiB of TCP as one
AT_ONCE = 64  # frames taken before it is time to look at the clock again


def open_interface(name: str) -> socket.socket:
    """Sees and sends whole frames; each has a header that tells of offloaded checksums and segmentation."""
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    raw.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    raw.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    raw.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
    raw.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER)
    raw.setblocking(False)
    raw.bind((name, ETH_P_ALL))
    return raw


class Direction:
    """Frames on their way from one end to the other."""

    def __init__(self, source: socket.socket, target: socket.socket, delay: float, jitter: float) -> None:
        self.source = source
        self._target = target
        self._delay = delay
        self._jitter = jitter
        self._underway: deque[tuple[float, bytes]] = deque()
        self._last_due = 0.0

    @property
    def next_due(self) -> float | None:
        return self._underway[0][0] if self._underway else None

    def take(self) -> None:
        for _ in range(AT_ONCE):
            try:
                frame = self.source.recv(FRAME)
            except BlockingIOError:
                return
            except OSError:  # the interface is down: said once, then frames come again when it is up
                return
            wanted = time.monotonic() + self._delay + random.uniform(0.0, self._jitter)
            self._last_due = max(wanted, self._last_due)
            self._underway.append((self._last_due, frame))

    def deliver(self) -> None:
        while self._underway and self._underway[0][0] <= time.monotonic():
            _, frame = self._underway.popleft()
            try:
                self._target.send(frame)
            except OSError:
                continue  # no carrier, or no room: lost, as on a cable


def forward(near: str, far: str, delay: float, jitter: float) -> None:
    """Never returns. Seconds, for each way; the jitter is added, evenly distributed from 0."""
    ends = open_interface(near), open_interface(far)
    ways = [Direction(ends[0], ends[1], delay, jitter), Direction(ends[1], ends[0], delay, jitter)]
    print("forwarding", flush=True)
    while True:
        due = min((way.next_due for way in ways if way.next_due is not None), default=None)
        wait = None if due is None else max(0.0, due - time.monotonic())
        readable, _, _ = select.select(ends, (), (), wait)
        for way in ways:
            if way.source in readable:
                way.take()
            way.deliver()


if __name__ == "__main__":
    forward(sys.argv[1], sys.argv[2], float(sys.argv[3]) / 1e3, float(sys.argv[4]) / 1e3)
