"""The coordinator's survey of links: every pair of devices, one measurement at a time, in quiet moments."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Self

import grpc

from edged.cluster.assignment import Endpoint
from edged.cluster.link_probe import measure_link
from edged.cluster.membership import Member
from edged.cluster.messages import LinkAnswer, LinkQuery
from edged.errors import EdgedError, PeerLostError
from edged.planning.profile import LinkProfile
from edged.rpc import edged_pb2, edged_pb2_grpc
from edged.rpc.status import unwrap

log = logging.getLogger(__name__)

SETTLE_S = 1.0  # after a device came: it has other things to do first
BUSY_S = 0.5  # between two looks whether the cluster is quiet
RETRY_S = 30.0  # after a measurement failed
REFRESH_S = 1800.0  # Wi-Fi changes with doors, people and neighbours
ASK_TIMEOUT_S = 20.0  # both calls of a measurement may take their whole time


@dataclass(frozen=True, slots=True)
class Place:
    """A device where it is now. An empty host: this device."""

    device: str
    name: str
    host: str
    port: int
    run: str  # a daemon that was started anew may be on another network

    @classmethod
    def of(cls, member: Member) -> Self:
        report = member.report
        return cls(member.device, report.name, member.host, report.port, report.run)

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(device=self.device, name=self.name, host=self.host, port=self.port)


@dataclass(frozen=True, slots=True)
class _Outcome:
    when: float  # monotonic
    failed: bool
    link: LinkProfile | None  # as measured last, by this measurement or an earlier one

    @property
    def due(self) -> float:
        return self.when + (RETRY_S if self.failed else REFRESH_S)


_NEVER = _Outcome(when=float("-inf"), failed=False, link=None)


Way = tuple[Place, Place]


class LinkSurvey:
    """Measures from construction until `close`, on a thread of its own.

    here: this device.  others: who is alive.  dial: a channel to a device at a host and port.
    is_quiet: whether nobody waits for an answer or for layers; asked before each measurement.
    """

    def __init__(
        self,
        *,
        here: Place,
        others: Callable[[], Iterable[Place]],
        dial: Callable[[Endpoint], grpc.Channel],
        is_quiet: Callable[[], bool],
    ) -> None:
        self._here = here
        self._others = others
        self._dial = dial
        self._is_quiet = is_quiet
        self._turn = threading.Condition()
        self._outcomes: dict[Way, _Outcome] = {}
        self._settled = 0.0  # monotonic time before which nothing is measured
        self._closing = False
        self._news = False  # something changed since the thread looked
        self._channel: grpc.Channel | None = None  # of the measurement under way
        self._thread = threading.Thread(target=self._run, name="edged-links", daemon=False)
        self._thread.start()

    def known(self) -> tuple[LinkProfile, ...]:
        """The links between devices that are here now, as measured last."""
        there = {self._here, *self._others()}
        with self._turn:
            return tuple(
                outcome.link
                for (source, target), outcome in self._outcomes.items()
                if outcome.link is not None and source in there and target in there
            )

    def known_of(self, device: str) -> tuple[LinkProfile, ...]:
        """Those that begin or end at `device`."""
        return tuple(link for link in self.known() if device in (link.source, link.target))

    def members_changed(self) -> None:
        """Somebody came or went. Never blocks."""
        with self._turn:
            self._settled = time.monotonic() + SETTLE_S
            self._wake()

    def measure_again(self) -> None:
        """Every link, soon; what is known stays known until then."""
        with self._turn:
            self._outcomes = {
                way: replace(_NEVER, link=outcome.link) for way, outcome in self._outcomes.items()
            }
            self._wake()

    def close(self) -> None:
        """Breaks off a measurement under way. Idempotent."""
        with self._turn:
            self._closing = True
            if self._channel is not None:
                self._channel.close()
            self._wake()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wake(self) -> None:
        self._news = True
        self._turn.notify_all()

    # ---- on the survey's own thread ---------------------------------------------------------------------

    def _run(self) -> None:
        while (way := self._next()) is not None:
            link = self._tried(*way)
            with self._turn:
                before = self._outcomes.get(way, _NEVER)
                self._outcomes[way] = _Outcome(time.monotonic(), link is None, link or before.link)

    def _tried(self, source: Place, target: Place) -> LinkProfile | None:
        try:
            answer = self._measure(source, target)
        except EdgedError as error:
            log.info("the link from %s to %s was not measured: %s", source.name, target.name, error.message)
        except Exception:
            log.exception("measuring a link failed")
        else:
            return LinkProfile(
                source=source.device,
                target=target.device,
                latency=answer.latency,
                bandwidth=answer.bandwidth,
            )
        return None

    def _next(self) -> Way | None:
        """The way to measure next, once one is due and the cluster is quiet; None to end."""
        while True:
            due, pause = self._due()
            if due is not None and not self._is_quiet():
                due, pause = None, BUSY_S
            with self._turn:
                if self._closing:
                    return None
                if due is not None:
                    return due
                if not self._news:
                    self._turn.wait(pause)
                self._news = False

    def _due(self) -> tuple[Way | None, float | None]:
        """What has been due for longest, first of all what was never measured; or how long to wait."""
        places = sorted({self._here, *self._others()}, key=lambda place: place.device)
        ways = [(source, target) for source in places for target in places if source != target]
        now = time.monotonic()
        with self._turn:
            self._outcomes = {way: self._outcomes[way] for way in ways if way in self._outcomes}
            if not ways:
                return None, None
            if now < self._settled:
                return None, self._settled - now
            way = min(ways, key=lambda way: self._outcomes.get(way, _NEVER).due)
            due = self._outcomes.get(way, _NEVER).due
        return (way, None) if due <= now else (None, due - now)

    def _measure(self, source: Place, target: Place) -> LinkAnswer:
        """Raises EdgedError."""
        first = target if source == self._here else source
        with self._turn:
            if self._closing:
                raise PeerLostError("this daemon is stopping")
            channel = self._channel = self._dial(first.endpoint)
        try:
            if source == self._here:
                return measure_link(channel, target.name)
            query = edged_pb2.Document(body=LinkQuery(target=target.endpoint).pack())
            answer = edged_pb2_grpc.MemberStub(channel).MeasureLink(query, timeout=ASK_TIMEOUT_S)
            return LinkAnswer.unpack(answer.body)
        except grpc.RpcError as error:
            raise unwrap(error, source.name) from None
        except ValueError:  # from gRPC, on a channel that was closed meanwhile
            raise PeerLostError(f"the call to {first.name} was broken off") from None
        finally:
            with self._turn:
                self._channel = None
            channel.close()
