"""FrontDoorClient: the generator that forwards to another process."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import grpc
import pytest

from edged.errors import ContextOverflowError, NotRunningError, PeerLostError, UnknownModelError
from edged.frontdoor.client import FrontDoorClient, is_listening, open_front_door
from edged.rpc.channel import connect_local
from edged.serving.generation import GenerateEvent, GenerateRequest, Message
from edged.settings import daemon_socket
from tests.cli.door import Door, open_door


def ask(question: str) -> GenerateRequest:
    return GenerateRequest(messages=(Message(role="user", content=question),))


@pytest.fixture
def client(home: Path, door: Door) -> Iterator[FrontDoorClient]:
    with open_front_door(daemon_socket(home)) as opened:
        yield opened


def test_events_arrive_as_they_were_sent(client: FrontDoorClient) -> None:
    *pieces, end = client.generate(ask("abc"))
    assert pieces == [GenerateEvent(text="c"), GenerateEvent(text="b"), GenerateEvent(text="a")]
    assert end.finish_reason == "stop"
    assert end.usage is not None
    assert end.usage.cached_tokens == 7


def test_cancel_reaches_the_other_end_and_ends_the_loop(client: FrontDoorClient, door: Door) -> None:
    generation = client.generate(ask("endless"))
    seen = []
    for event in generation:
        seen.append(event)
        if len(seen) == 3:
            generation.cancel()
    assert door.cancelled.wait(10)
    assert seen[-1].finish_reason == "cancelled"
    generation.cancel()


def test_leaving_the_loop_hangs_up(client: FrontDoorClient, door: Door) -> None:
    for _ in client.generate(ask("endless")):
        break
    assert door.cancelled.wait(10)


def test_errors_are_the_daemons_own(client: FrontDoorClient) -> None:
    with pytest.raises(ContextOverflowError, match="longer than the context"):
        list(client.generate(ask("too long")))
    with pytest.raises(UnknownModelError, match="eagle"):
        list(client.load("eagle"))


def test_asyncio(client: FrontDoorClient, door: Door) -> None:
    async def gather() -> list[list[GenerateEvent]]:
        async def one(question: str) -> list[GenerateEvent]:
            return [event async for event in client.generate(ask(question))]

        return await asyncio.gather(*(one(f"q{index}") for index in range(20)))

    answers = asyncio.run(gather())
    assert ["".join(event.text for event in answer) for answer in answers] == [
        f"q{index}"[::-1] for index in range(20)
    ]


def test_asyncio_errors(client: FrontDoorClient) -> None:
    async def use() -> list[str]:
        seen = []
        with pytest.raises(ContextOverflowError):
            async for event in client.generate(ask("too long")):
                seen.append(event.text)
        return seen

    assert asyncio.run(use()) == ["begun"]


def test_a_cancelled_task_hangs_up_and_leaves_no_thread(client: FrontDoorClient, door: Door) -> None:
    async def use() -> None:
        begun = asyncio.Event()

        async def listen() -> None:
            async for _ in client.generate(ask("endless")):
                begun.set()

        task = asyncio.create_task(listen())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(use())
    assert door.cancelled.wait(10)
    assert "front-door-events" not in [thread.name for thread in threading.enumerate()]


def test_loading(client: FrontDoorClient, door: Door) -> None:
    steps = list(client.load("crow"))
    assert [step.done for step in steps[:5]] == [0, 1, 2, 3, 4]
    assert steps[-1].finished
    for step in client.load("parrot"):
        assert step.stage == "loading layers"
        break
    assert client.status().name == "nuc"


def test_grpc_is_kept_from_the_thread_that_ctrl_c_reaches(home: Path, door: Door) -> None:
    """In the middle of its bookkeeping an exception leaves locks and calls behind. Hanging up is short."""
    library = str(Path(grpc.__file__).parent)
    entered: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        within = frame.f_back is not None and frame.f_back.f_code.co_filename.startswith(library)
        if event == "call" and not within and frame.f_code.co_filename.startswith(library):
            entered.add(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        with open_front_door(daemon_socket(home)) as client:
            client.status()
            list(client.load("crow"))
            list(client.generate(ask("hello")))
            for _ in client.load("parrot"):
                break
    finally:
        sys.setprofile(before)
    assert entered <= {"cancel", "__del__"}


def test_a_daemon_that_dies_amid_the_answer(home: Path) -> None:
    with ExitStack() as daemon:
        daemon.enter_context(open_door(home))
        with open_front_door(daemon_socket(home)) as client:
            events = iter(client.generate(ask("endless")))
            assert next(events).text == "1 "
            daemon.close()
            with pytest.raises(NotRunningError, match="no daemon answers"):
                list(events)


def test_after_the_daemon_has_gone(home: Path) -> None:
    with open_door(home):
        channel = connect_local(daemon_socket(home))
        FrontDoorClient(channel, "nuc").status()
    with channel, pytest.raises(PeerLostError, match="nuc"):
        FrontDoorClient(channel, "nuc").status()


def test_is_listening(home: Path) -> None:
    path = daemon_socket(home)
    assert not is_listening(path)
    with open_door(home):
        assert is_listening(path)
    assert not is_listening(path)
    path.touch()
    assert not is_listening(path)
