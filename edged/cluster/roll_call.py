"""Asking the other devices, one by one, for as long as this daemon does not stop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from edged.cluster.member_client import MemberClient
from edged.errors import EdgedError
from edged.planning.profile import DeviceProfile


@dataclass(frozen=True, slots=True)
class Peer:
    """Another device of the cluster as membership knows it."""

    device: str
    name: str
    host: str
    port: int
    profile: DeviceProfile


class RollCall:
    """`dial` makes a client for a peer; it is closed after use. Any thread."""

    def __init__(self, dial: Callable[[Peer], MemberClient]) -> None:
        self._dial = dial
        self._lock = threading.Lock()
        self._clients: set[MemberClient] = set()  # those in use
        self._over = False

    @contextmanager
    def client(self, peer: Peer) -> Iterator[MemberClient]:
        """To ask `peer` with. Raises EdgedError if it has no address, or once called off."""
        client = self._dial(peer)
        try:
            with self._lock:
                if self._over:
                    raise EdgedError("the daemon is stopping")
                self._clients.add(client)
            yield client
        finally:
            with self._lock:
                self._clients.discard(client)
            client.close()

    def silent(self, peers: Iterable[Peer]) -> list[Peer]:
        """Those that do not answer at once."""
        return [peer for peer in peers if not self._answer(peer, lambda client: client.is_alive())]

    def computing(self, peers: Iterable[Peer]) -> list[Peer]:
        """Those in which a window runs at this moment."""
        return [peer for peer in peers if self._answer(peer, lambda client: client.is_computing())]

    def call_off(self) -> None:
        """Nobody is asked from now on, and questions under way end with an error."""
        with self._lock:
            self._over = True
            clients, self._clients = self._clients, set()
        for client in clients:
            client.close()

    def _answer(self, peer: Peer, question: Callable[[MemberClient], bool]) -> bool:
        with self.client(peer) as client:
            return question(client)
