"""What a member reports with every heartbeat."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from edged import __version__
from edged.cluster.messages import BrokenRing, HeartbeatReport
from edged.cluster.worker import Worker
from edged.errors import EdgedError, MisconductError
from edged.planning.profile import DeviceProfile
from edged.store.catalogue import Catalogue

MAX_REASON = 500  # characters, as BrokenRing allows


class Pulse:
    """Collects the report; broken links are reported until the next epoch."""

    def __init__(
        self,
        name: str,
        port: int,
        profile: Callable[[], DeviceProfile],
        catalogue: Catalogue,
        worker: Worker,
    ) -> None:
        self._run = secrets.token_hex(8)
        self._name = name
        self._port = port
        self._profile = profile
        self._catalogue = catalogue
        self._worker = worker
        self._broken: BrokenRing | None = None
        self._news: Callable[[], None] = lambda: None

    def on_news(self, tell: Callable[[], None]) -> None:
        """`tell` is called when the coordinator should hear at once."""
        self._news = tell

    def ring_broke(self, epoch: int, error: EdgedError) -> None:
        self._broken = BrokenRing(
            epoch=epoch,
            reason=error.message[:MAX_REASON],
            offender=error.device if isinstance(error, MisconductError) else "",
        )
        self._news()

    def report(self) -> HeartbeatReport:
        broken = self._broken
        if broken is not None and broken.epoch < self._worker.latest_epoch:
            broken = None
        return HeartbeatReport(
            run=self._run,
            name=self._name,
            version=__version__,
            port=self._port,
            profile=self._profile(),
            models=tuple(model.id for model in self._catalogue.models() if self._catalogue.owns(model)),
            epoch=self._worker.latest_epoch,
            broken=broken,
            given_up=self._worker.residency.given_up,
        )
