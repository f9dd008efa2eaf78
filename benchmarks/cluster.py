"""What benchmarks' clusters of real daemons have in common, wherever the daemons run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from edged.frontdoor.client import FrontDoorClient, open_front_door
from edged.planning.plan import Plan
from edged.rpc.messages import StatusAnswer
from edged.serving.generation import GenerateRequest, Sampling
from edged.settings import daemon_socket
from tests.lab import Daemon, LabError

MODEL = "benchmark"  # what it is called in every store


class RunningCluster:
    """Daemons, the head first, and the ring that they run once `load` has been called."""

    client: FrontDoorClient
    plan: Plan

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.daemons: list[Daemon] = []

    def open_door(self) -> None:
        """`client` speaks to the head from now on."""
        self.client = self._stack.enter_context(open_front_door(daemon_socket(self.daemons[0].place.home)))

    def load(self, wanted: Callable[[Plan], bool], timeout: float) -> None:
        """Loads the model and waits for a ring that `wanted` accepts. Raises LabError."""
        for _ in self.client.load(MODEL):
            pass

        def decided(status: StatusAnswer) -> bool:
            return status.state == "failed" or (
                status.state == "ready" and status.plan is not None and wanted(status.plan)
            )

        status = self.daemons[0].wait_until(decided, "ring", timeout)
        if status.plan is None or status.state != "ready":
            raise LabError(status.problem or "the ring is not ready")
        self.plan = status.plan

    def tokens(self, prompt: Sequence[int], max_tokens: int) -> Iterator[tuple[int, ...]]:
        """One greedy answer of exactly `max_tokens` tokens, as they come. Raises LabError if it has fewer."""
        request = GenerateRequest(
            prompt=tuple(prompt), sampling=Sampling(temperature=0), max_tokens=max_tokens, ignore_eos=True
        )
        came = 0
        for event in self.client.generate(request):
            if event.token_ids:
                came += len(event.token_ids)
                yield event.token_ids
        if came != max_tokens:
            raise LabError(f"{came} tokens came instead of {max_tokens}")

    def close(self) -> None:
        for daemon in reversed(self.daemons):
            if daemon.process.running:
                daemon.stop()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
