"""The official client against the real server."""

from __future__ import annotations

import asyncio

import openai
import pytest

from edged.api.server import HttpServer
from edged.serving.generation import GenerateRequest, Message
from tests.api.parrot import MODEL, House, Parrot, words


def spoken(text: str, seed: int | None = None, max_tokens: int | None = None) -> str:
    request = GenerateRequest(messages=(Message(role="user", content=text),), max_tokens=max_tokens)
    sampling = request.sampling.model_copy(update={"seed": seed})
    return "".join(words(request.model_copy(update={"sampling": sampling})))


def say(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=say("one two"), max_tokens=3, seed=7)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == MODEL
    choice = answer.choices[0]
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, "length", "assistant")
    assert choice.message.content == spoken("one two", 7, 3)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        2,
        3,
        5,
    )
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 1
    assert answer._request_id


def test_chat_streams(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model=MODEL, messages=say("hello"), stream=True))
    first, *_, last = chunks
    assert first.choices[0].delta.role == "assistant"
    assert [chunk.choices[0].delta.role for chunk in chunks[1:]] == [None] * (len(chunks) - 1)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == spoken("hello")
    assert last.choices[0].finish_reason == "stop"
    assert all(chunk.choices[0].finish_reason is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert all(chunk.usage is None for chunk in chunks)


def test_stream_with_usage(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=say("a b"),
            stream=True,
            max_completion_tokens=4,
            stream_options={"include_usage": True},
        )
    )
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (2, 4)


def test_several_choices_have_seeds_of_their_own(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=say("x y"), n=3, seed=2**32 - 1)
    assert [choice.message.content for choice in answer.choices] == [
        spoken("x y", 2**32 - 1),
        spoken("x y", 0),
        spoken("x y", 1),
    ]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 2  # the shared prompt counts once
    assert answer.usage.completion_tokens == 18


def test_several_choices_stream_interleaved(client: openai.OpenAI) -> None:
    texts = {0: "", 1: ""}
    ends: dict[int, str | None] = {}
    for chunk in client.chat.completions.create(model=MODEL, messages=say("z"), n=2, seed=5, stream=True):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        ends[choice.index] = choice.finish_reason
    assert texts == {0: spoken("z", 5), 1: spoken("z", 6)}
    assert ends == {0: "stop", 1: "stop"}


@pytest.mark.parametrize(
    ("prompt", "subjects"),
    [
        ("hi", ["hi"]),
        (["hi", "ho"], ["hi", "ho"]),
        ([1, 2, 3], ["1+2+3"]),
        ([[1, 2], [3]], ["1+2", "3"]),
    ],
)
def test_completions(client: openai.OpenAI, prompt: object, subjects: list[str]) -> None:
    answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=2, seed=1)  # type: ignore[arg-type]
    assert answer.object == "text_completion"
    assert [choice.text for choice in answer.choices] == [f"{about}/1/0 {about}/1/1 " for about in subjects]
    assert [choice.index for choice in answer.choices] == list(range(len(subjects)))
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2 * len(subjects)


def test_completions_end_after_16_tokens_unless_told(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="hi")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_completions_stream(client: openai.OpenAI) -> None:
    chunks = list(
        client.completions.create(
            model=MODEL,
            prompt="hi",
            max_tokens=3,
            seed=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == "hi/0/0 hi/0/1 hi/0/2 "
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3


def test_parameters_arrive(client: openai.OpenAI, parrot: Parrot) -> None:
    client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c"},
            {"role": "tool", "content": "d", "tool_call_id": "1"},
        ],
        temperature=0,
        top_p=0.5,
        frequency_penalty=0.25,
        presence_penalty=-0.5,
        seed=-1,
        stop="END",
        logit_bias={"17": -100, "18": 5},
        max_completion_tokens=9,
        user="someone",
        extra_body={"top_k": 3, "min_p": 0.1, "repeat_penalty": 1.5, "unheard_of": {"x": 1}},
    )
    request = parrot.generations[0].request
    assert request.model == MODEL
    assert request.messages == (
        Message(role="system", content="be brief"),
        Message(role="user", content="a\nb"),
        Message(role="assistant", content="c"),
        Message(role="tool", content="d"),
    )
    assert (request.max_tokens, request.stop) == (9, ("END",))
    assert request.sampling.model_dump(exclude={"penalty_last_n"}) == {
        "temperature": 0.0,
        "top_k": 3,
        "top_p": 0.5,
        "min_p": 0.1,
        "repeat_penalty": 1.5,
        "frequency_penalty": 0.25,
        "presence_penalty": -0.5,
        "seed": None,
        "logit_bias": {17: -100.0, 18: 5.0},
    }


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_the_head_chooses_is_named(
    client: openai.OpenAI, parrot: Parrot, house: House, stream: bool
) -> None:
    ring, house.plan, house.state = house.plan, None, "idle"
    parrot.on_generate = lambda: setattr(house, "plan", ring)  # it loads its only model for the request
    answer = client.chat.completions.create(model="", messages=say("hi"), stream=stream)
    named = {chunk.model for chunk in answer} if isinstance(answer, openai.Stream) else {answer.model}
    assert named == {MODEL}


def test_models(client: openai.OpenAI) -> None:
    listed = list(client.models.list())
    assert [model.id for model in listed] == [MODEL, "another"]  # the loaded one first
    assert listed[0].created == 1700000002
    assert listed[0].to_dict()["context_length"] == 100  # what the plan gives it
    assert listed[1].to_dict()["context_length"] == 2048
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nothing")
    assert caught.value.code == "model_not_found"


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-4", messages=say("hi"))
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model=MODEL, messages=say("w " * 200))
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.RateLimitError) as full:
        client.chat.completions.create(model=MODEL, messages=say("full"), stream=True)
    assert full.value.code == "overloaded"
    assert full.value.response.headers["retry-after"] == "1"


def test_an_error_in_a_stream_is_raised_by_the_client(client: openai.OpenAI) -> None:
    heard = ""
    with pytest.raises(openai.APIError, match="the link to nuc went away") as caught:
        for chunk in client.chat.completions.create(model=MODEL, messages=say("break"), stream=True):
            heard += chunk.choices[0].delta.content or ""
    assert heard == "so "
    assert caught.value.code == "ring_broken"


def test_eight_at_once_are_as_alone(server: HttpServer) -> None:
    async def one(client: openai.AsyncOpenAI, index: int) -> str:
        messages = say(f"question {index}")
        if index % 2:
            answer = await client.chat.completions.create(model=MODEL, messages=messages, seed=index)
            return answer.choices[0].message.content or ""
        stream = await client.chat.completions.create(model=MODEL, messages=messages, seed=index, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def eight() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=f"http://{server.address}/v1", api_key="unused", max_retries=0
        ) as client:
            return await asyncio.gather(*(one(client, index) for index in range(8)))

    assert asyncio.run(eight()) == [spoken(f"question {index}", index) for index in range(8)]
