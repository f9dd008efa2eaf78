"""A member's heart: it beats to the coordinator once a second, from its start until it says goodbye."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any, Protocol, Self

import grpc

from edged.cluster.address_book import Address, AddressBook
from edged.cluster.identity import Identity
from edged.cluster.membership import HEARTBEAT_S
from edged.cluster.messages import ClusterView, HeartbeatReport, LeaveNotice
from edged.documents import Document
from edged.errors import EdgedError, PeerLostError
from edged.rpc import edged_pb2, edged_pb2_grpc
from edged.rpc.channel import connect, explain

log = logging.getLogger(__name__)

CALL_TIMEOUT_S = 2.0
LEAVE_TIMEOUT_S = 1.0
RETRY_S = (0.2, 0.5, 1.0, 2.0)  # after the first, second, ... failure in a row; the last one repeats


class HeartListener(Protocol):
    """Told from the heart's own thread; the next beat waits until it returns."""

    def coordinator_says(self, view: ClusterView) -> None:
        """Every successful beat."""
        ...

    def coordinator_lost(self, error: EdgedError) -> None:
        """The first failed beat after a good one, and again when the reason changes."""
        ...


class Heart:
    """Beats from construction until `close`. `report` is asked before every beat; it must carry one `run`."""

    def __init__(
        self,
        identity: Identity,
        addresses: AddressBook,
        report: Callable[[], HeartbeatReport],
        listener: HeartListener,
        interval_s: float = HEARTBEAT_S,
    ) -> None:
        self._identity = identity
        self._addresses = addresses
        self._report = report
        self._listener = listener
        self._interval = interval_s
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._call: Any = None  # the call in progress, for close() to cancel
        self._link: tuple[Address, grpc.Channel] | None = None
        self._run_id: str | None = None
        self._trouble: str | None = None  # what the listener was told last
        self._thread = threading.Thread(target=self._run, name="edged-heart", daemon=False)
        self._thread.start()

    def beat_now(self) -> None:
        """Something happened that the coordinator should know at once."""
        self._wake.set()

    def coordinator_seen(self, hosts: Iterable[str], port: int) -> None:
        """mDNS found the coordinator there. If it cannot be reached now, it is tried there at once."""
        if self._addresses.see(hosts, port):
            self._wake.set()

    def close(self) -> None:
        """Says goodbye if the coordinator can be reached, and ends. Idempotent."""
        self._closing.set()
        self._wake.set()
        with self._lock:
            if self._call is not None:
                self._call.cancel()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- on the heart's own thread ----------------------------------------------------------------------

    def _run(self) -> None:
        failures = 0
        while not self._closing.is_set():
            self._wake.clear()
            try:
                view = self._beat()
            except EdgedError as error:
                pause = RETRY_S[min(failures, len(RETRY_S) - 1)]
                failures += 1
                self._lost(error)
            except Exception:
                log.exception("a heartbeat failed")
                pause = RETRY_S[-1]
            else:
                pause, failures = self._interval, 0
                self._trouble = None
                self._tell(lambda view=view: self._listener.coordinator_says(view))  # type: ignore[misc]
            self._wake.wait(pause)
        self._leave()

    def _beat(self) -> ClusterView:
        """One heartbeat, by the connection that is there or else by whichever address answers first."""
        report = self._report()
        self._run_id = report.run
        failure: EdgedError = PeerLostError(
            "the coordinator's address is not known: start its daemon, or give --peer HOST:PORT"
        )
        if self._link is not None:
            try:
                return self._send(self._link[0], self._link[1], report)
            except EdgedError as error:
                failure = error
                self._drop_link()
        for address in self._addresses.candidates():
            if self._closing.is_set():
                break
            try:
                channel = connect(self._identity, self._identity.founder, *address)
            except EdgedError as error:
                failure = _worse(failure, error)
                continue
            try:
                view = self._send(address, channel, report)
            except EdgedError as error:
                channel.close()
                failure = _worse(failure, error)
                continue
            self._link = (address, channel)
            self._addresses.worked(address)
            return view
        raise failure

    def _send(self, address: Address, channel: grpc.Channel, report: HeartbeatReport) -> ClusterView:
        stub = edged_pb2_grpc.CoordinatorStub(channel)
        try:
            return ClusterView.unpack(self._ask(stub.Heartbeat, report))
        except grpc.RpcError as error:
            if self._closing.is_set():
                raise PeerLostError("this daemon is stopping") from None
            raise explain(
                error, self._identity, self._identity.founder, *address, "the coordinator"
            ) from None

    def _ask(self, method: Any, document: Document) -> bytes:
        """A call that close() can break off."""
        call = method.future(edged_pb2.Document(body=document.pack()), timeout=CALL_TIMEOUT_S)
        with self._lock:
            self._call = call
        try:
            return bytes(call.result().body)
        except grpc.FutureCancelledError:
            raise PeerLostError("this daemon is stopping") from None
        finally:
            with self._lock:
                self._call = None

    def _leave(self) -> None:
        if self._link is None or self._run_id is None:
            return
        stub = edged_pb2_grpc.CoordinatorStub(self._link[1])
        try:
            goodbye = edged_pb2.Document(body=LeaveNotice(run=self._run_id).pack())
            stub.Leave(goodbye, timeout=LEAVE_TIMEOUT_S)
        except grpc.RpcError:
            log.info("the coordinator did not hear our goodbye")
        self._drop_link()

    def _drop_link(self) -> None:
        if self._link is not None:
            self._link[1].close()
            self._link = None

    def _lost(self, error: EdgedError) -> None:
        if self._closing.is_set() or self._trouble == error.message:
            return
        self._trouble = error.message
        log.warning("no answer from the coordinator: %s", error.message)
        self._tell(lambda: self._listener.coordinator_lost(error))

    def _tell(self, notify: Callable[[], None]) -> None:
        try:
            notify()
        except Exception:
            log.exception("nobody could handle what the coordinator said")


def _worse(one: EdgedError, other: EdgedError) -> EdgedError:
    """Of two failures the one that tells more: a refusal rather than silence, else the later one."""
    return one if isinstance(other, PeerLostError) and not isinstance(one, PeerLostError) else other
