"""What only this device's own user may ask: a token for another device, and the end."""

from __future__ import annotations

import os

from edged.cluster.admission import Admission
from edged.cluster.token import LIFETIME_S
from edged.errors import ClusterError
from edged.node.process import StopRequest
from edged.rpc.messages import StopAnswer, TokenAnswer


class OwnersKeys:
    """`admission` is None on a device that did not found the cluster."""

    def __init__(self, admission: Admission | None, stop: StopRequest) -> None:
        self._admission = admission
        self._stop = stop

    def token(self) -> TokenAnswer:
        if self._admission is None:
            raise ClusterError(
                "only the device that founded the cluster gives tokens: run `edged token` there"
            )
        return TokenAnswer(token=str(self._admission.new_token()), expires_in_s=int(LIFETIME_S))

    def stop(self) -> StopAnswer:
        self._stop.set()
        return StopAnswer(pid=os.getpid())
