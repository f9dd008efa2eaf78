"""Turns work that reports its progress by callback into an iterator of that progress."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue

from edged.rpc.messages import Progress

Report = Callable[[Progress], None]


def stepwise(work: Callable[[Report], None], name: str) -> Iterator[Progress]:
    """Runs `work` on a thread of its own and yields what it reports; raises what it raised, at the end.

    The work begins with the first step asked for. A caller that stops iterating waits for the work to end.
    """
    steps: SimpleQueue[Progress | BaseException | None] = SimpleQueue()

    def run() -> None:
        try:
            work(steps.put)
        except BaseException as error:  # noqa: BLE001 - raised again where the steps are read
            steps.put(error)
        else:
            steps.put(None)

    thread = threading.Thread(target=run, name=name)
    thread.start()
    try:
        while (step := steps.get()) is not None:
            if isinstance(step, BaseException):
                raise step
            yield step
    finally:
        thread.join()
