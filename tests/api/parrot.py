"""A head for HTTP tests: its words are made from the request, so that a mix-up of answers shows."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator

from edged.api.daemon_view import HopStatistics, ResidencyStatistics, Statistics
from edged.errors import (
    ContextOverflowError,
    InvalidRequestError,
    ModelError,
    OverloadedError,
    RingBrokenError,
    UnknownModelError,
)
from edged.planning.plan import ContextOptions, Hop, Plan
from edged.rpc.messages import MemberStatus, ModelsAnswer, ModelSummary, StatusAnswer
from edged.serving.generation import GenerateEvent, GenerateRequest, Usage

MODEL = "org/parrot:q4"
CONTEXT = 100
DEFAULT_WORDS = 6


def subject(request: GenerateRequest) -> str:
    """What the request is about: its last message, or its prompt."""
    if request.messages is not None:
        return request.messages[-1].content
    if isinstance(request.prompt, tuple):
        return "+".join(map(str, request.prompt))
    return request.prompt or ""


def words(request: GenerateRequest) -> list[str]:
    count = request.max_tokens or DEFAULT_WORDS
    return [f"{subject(request)}/{request.sampling.seed}/{index} " for index in range(count)]


class ParrotGeneration:
    """Says `words(request)`. Some subjects stand for a behaviour: see `_events`."""

    def __init__(self, request: GenerateRequest) -> None:
        self.request = request
        self.cancelled = threading.Event()
        self._released = threading.Event()
        self.ends = True
        self._gone: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __iter__(self) -> Iterator[GenerateEvent]:
        raise NotImplementedError("HTTP iterates asynchronously")

    async def __aiter__(self) -> AsyncIterator[GenerateEvent]:
        self._gone, self._loop = asyncio.Event(), asyncio.get_running_loop()
        if self._released.is_set():
            self._gone.set()
        said = 0
        async for text in self._words():
            if self.cancelled.is_set():
                yield GenerateEvent(finish_reason="cancelled")
                return
            said += 1
            yield GenerateEvent(text=text, token_ids=(said,))
            await asyncio.sleep(0)
        if not self.ends:
            return
        prompt = len(subject(self.request).split())
        usage = Usage(prompt_tokens=prompt, completion_tokens=said, cached_tokens=prompt // 2)
        yield GenerateEvent(finish_reason="length" if self.request.max_tokens else "stop", usage=usage)

    def cancel(self) -> None:
        self.cancelled.set()
        self.release()

    def release(self) -> None:
        """Let a generation that waits go on; it may not have begun yet."""
        self._released.set()
        if self._gone is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._gone.set)

    async def _words(self) -> AsyncIterator[str]:
        assert self._gone is not None
        match subject(self.request):
            case "silence":  # not a word until cancelled
                await self._gone.wait()
                yield ""
            case "hesitate":  # one word, then nothing until cancelled
                yield "well "
                await self._gone.wait()
                yield ""
            case "flood":  # without end
                while True:
                    yield "x" * 4096
            case "break":
                yield "so "
                raise RingBrokenError("the link to nuc went away")
            case "crash":
                raise ValueError("a secret of the inside")
            case "fizzle":  # ends without saying why
                yield "so "
                await self._gone.wait()
                self.ends = False
            case "overflow later":
                raise ContextOverflowError(f"the prompt has 200 tokens, the context {CONTEXT}")
            case _:
                for word in words(self.request):
                    yield word


class Parrot:
    def __init__(self) -> None:
        self.generations: list[ParrotGeneration] = []
        self._queued = threading.Condition()
        self.gate = threading.Event()  # `generate` waits for it: a prompt that takes long to tokenise
        self.gate.set()
        self.entered = threading.Event()
        self.on_generate: Callable[[], None] = lambda: None

    def generate(self, request: GenerateRequest) -> ParrotGeneration:
        self.entered.set()
        self.on_generate()
        assert self.gate.wait(30)
        if request.model not in (None, MODEL):
            raise UnknownModelError(f"there is no model '{request.model}' here; see: edged models")
        about = subject(request)
        if about == "full":
            raise OverloadedError("8 requests wait already; try again in a moment")
        if about == "refuse":
            raise InvalidRequestError("token 99 is not in the vocabulary")
        if about == "unloaded":
            raise ModelError("no model is loaded; load one with `edged run`")
        if about == "bug":
            raise ValueError("a secret of the inside")
        if len(about.split()) > CONTEXT:
            raise ContextOverflowError(f"the prompt has {len(about.split())} tokens, the context {CONTEXT}")
        generation = ParrotGeneration(request)
        with self._queued:
            self.generations.append(generation)
            self._queued.notify_all()
        return generation

    def generation(self, index: int = 0) -> ParrotGeneration:
        """The `index`th request's, as soon as it is there."""
        with self._queued:
            assert self._queued.wait_for(lambda: len(self.generations) > index, 30)
            return self.generations[index]


class House:
    """A DaemonView whose answers the test sets."""

    def __init__(self) -> None:
        self.state = "ready"
        self.problem = ""
        self.plan: Plan | None = Plan(
            epoch=3,
            model="0" * 64,
            n_layers=4,
            hops=(
                Hop(device="a", first=0, last=2),
                Hop(device="b", first=2, last=3),
                Hop(device="a", first=3, last=4),
            ),
            context=ContextOptions(n_ctx=CONTEXT, n_seq_max=4, n_ubatch=64),
        )

    def models(self) -> ModelsAnswer:
        common = {
            "id": "0" * 64,
            "architecture": "llama",
            "n_layers": 4,
            "n_ctx_train": 2048,
            "size": 9,
            "held": 9,
        }
        return ModelsAnswer(
            models=(
                ModelSummary(name="another", created=1700000001, **common),
                ModelSummary(name=MODEL, created=1700000002, loaded=True, **common),
            )
        )

    def status(self) -> StatusAnswer:
        members = (
            MemberStatus(device="a", name="attic", address="10.0.0.1:7411", state="alive"),
            MemberStatus(device="b", name="barn", address="10.0.0.2:7411", state="silent"),
        )
        return StatusAnswer(
            device="a",
            name="attic",
            version="0.1.0",
            cluster="f",
            coordinator="a",
            http="",
            state=self.state,
            problem=self.problem,
            model=MODEL if self.plan else "",
            plan=self.plan,
            members=members,
            active_requests=2,
            waiting_requests=1,
        )

    def statistics(self) -> Statistics:
        residency = ResidencyStatistics(resident=10, streamed=7, given_up=1, read=99, waited=0.25)
        hop = HopStatistics(hop=1, device="b", frames=7, compute_s=1.5, bytes_sent=4096)
        return Statistics(hops=(hop,), frames_dropped=5, residency=residency)
