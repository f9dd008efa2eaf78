"""A front door with a script behind it: the real gRPC service on a real socket, but no model."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

from edged.errors import ContextOverflowError, UnknownModelError
from edged.frontdoor.service import FrontDoorService
from edged.planning.plan import ContextOptions, Expectation, Hop, LeftOut, Plan
from edged.planning.profile import DeviceProfile, LinkProfile
from edged.rpc.edged_pb2_grpc import add_FrontDoorServicer_to_server
from edged.rpc.messages import (
    MemberStatus,
    ModelsAnswer,
    ModelSummary,
    Progress,
    StatusAnswer,
    StopAnswer,
    TokenAnswer,
)
from edged.rpc.server import serve_local
from edged.serving.generation import GenerateEvent, GenerateRequest, Usage
from edged.settings import daemon_socket

MODEL_ID = "ab" * 32
OTHER_ID = "cd" * 32
ATTACK = "safe\x1b]0;owned\x07\x1b[2J\x1b[31mred\x9b5mblink\rover"


def make_plan() -> Plan:
    return Plan(
        epoch=3,
        model=MODEL_ID,
        n_layers=12,
        hops=(
            Hop(device="id-nuc", first=0, last=4),
            Hop(device="id-pi", first=4, last=11),
            Hop(device="id-nuc", first=11, last=12),
        ),
        context=ContextOptions(n_ctx=2048, n_seq_max=8, n_ubatch=64),
        note="memory has room for less",
        left_out=(LeftOut(device="id-old", reason="it is too slow"),),
        expected=Expectation(
            tpot_ms=38.0, ttft_ms_per_token=2.0, bytes_read_per_token=0, memory={"id-nuc": 1, "id-pi": 1}
        ),
    )


class ScriptedGeneration:
    """Says the question backwards; `endless` counts until it is cancelled; `attack` is a hostile model."""

    def __init__(self, door: Door, request: GenerateRequest) -> None:
        self._door = door
        self._request = request
        self._cancelled = threading.Event()

    def __iter__(self) -> Iterator[GenerateEvent]:
        assert self._request.messages is not None
        question = self._request.messages[-1].content
        if question == "endless":
            count = 0
            while not self._cancelled.wait(0.02):
                count += 1
                yield GenerateEvent(text=f"{count} ", token_ids=(count,))
            return
        if question == "too long":
            yield GenerateEvent(text="begun")
            raise ContextOverflowError("the conversation is longer than the context of 2048 tokens")
        text = ATTACK if question == "attack" else question[::-1]
        for letter in text:
            yield GenerateEvent(text=letter)
        yield GenerateEvent(
            finish_reason="stop",
            usage=Usage(
                prompt_tokens=11, completion_tokens=5, cached_tokens=7, prefill_ms=20.0, decode_ms=100.0
            ),
        )

    def __aiter__(self) -> AsyncIterator[GenerateEvent]:
        raise NotImplementedError

    def cancel(self) -> None:
        self._cancelled.set()
        self._door.cancelled.set()


class Door:
    """What the daemon would know and do. Tests look at `requests`, `loads` and `cancelled`."""

    def __init__(self) -> None:
        self.requests: list[GenerateRequest] = []
        self.loads: list[str] = []
        self.cancelled = threading.Event()
        self.loaded = "parrot"
        self.problem = ""
        self.pid = os.getpid()
        self.plan = make_plan()
        self.profiles: tuple[DeviceProfile, ...] = ()  # none: not the head
        self.links: tuple[LinkProfile, ...] = ()
        self.rounds: int | None = None
        self.stopped = threading.Event()

    def generate(self, request: GenerateRequest) -> ScriptedGeneration:
        self.requests.append(request)
        self.cancelled.clear()
        return ScriptedGeneration(self, request)

    def load(self, model: str) -> Iterator[Progress]:
        if model not in ("parrot", "crow"):
            raise UnknownModelError(f"there is no model {model!r}; there is: parrot, crow")
        self.loads.append(model)
        for done in range(5):
            yield Progress(stage="loading layers", device="nuc", done=done, total=4, unit="layers")
        self.loaded = model
        yield Progress(stage="ready", finished=True)

    def models(self) -> ModelsAnswer:
        sizes = {"parrot": MODEL_ID, "crow": OTHER_ID}
        return ModelsAnswer(
            models=tuple(
                ModelSummary(
                    name=name,
                    id=model_id,
                    architecture="llama",
                    n_layers=12,
                    n_ctx_train=2048,
                    size=3 * 2**20,
                    held=2**20,
                    loaded=name == self.loaded,
                )
                for name, model_id in sizes.items()
            )
        )

    def status(self) -> StatusAnswer:
        members = (
            MemberStatus(
                device="id-nuc",
                name="nuc",
                address="10.0.0.1:7411",
                state="alive",
                is_coordinator=True,
                version="0.1.0",
                memory_budget=2**30,
            ),
            MemberStatus(
                device="id-pi", name="p\x1b[31mi", address="10.0.0.2:7411", state="silent", last_seen_s=7.0
            ),
        )
        return StatusAnswer(
            device="id-nuc",
            name="nuc",
            version="0.1.0",
            cluster="f" * 64,
            coordinator="id-nuc",
            http="127.0.0.1:7480",
            state="ready" if self.loaded else "idle",
            problem=self.problem,
            model=self.loaded,
            plan=self.plan if self.loaded else None,
            members=members,
            active_requests=1,
            measured_tpot_ms=41.25 if self.loaded else None,
            links=self.links,
            rounds=self.rounds,
            profiles=self.profiles,
        )

    def token(self) -> TokenAnswer:
        return TokenAnswer(token="edged-1-secret", expires_in_s=600)

    def stop(self) -> StopAnswer:
        self.stopped.set()
        return StopAnswer(pid=self.pid)


@contextmanager
def open_door(home: Path) -> Iterator[Door]:
    """A daemon's front door in `home`, as far as a client can tell."""
    door = Door()
    service = FrontDoorService(door, door)

    def register(server: object) -> None:
        add_FrontDoorServicer_to_server(service, server)

    with serve_local(daemon_socket(home), [register]):
        yield door
