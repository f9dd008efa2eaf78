from __future__ import annotations

import math

import numpy as np
import pytest
from llama_cpp._internals import LlamaSampler
from llama_cpp.llama_cpp import (
    llama_sampler_accept,
    llama_sampler_apply,
    llama_token_data,
    llama_token_data_array,
)

from edged.errors import InvalidRequestError, WindowError
from edged.serving.generation import Sampling
from edged.serving.sampler import Candidates, Sampler

N_VOCAB = 5000
N_CTX = 512
STEPS = 40


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    return np.random.default_rng(7).normal(0, 3, (STEPS, N_VOCAB)).astype(np.float32)


def drawn(
    sampling: Sampling, logits: np.ndarray, prompt: tuple[int, ...] = (), banned: tuple[int, ...] = ()
) -> list[int]:
    sampler = Sampler(sampling, Candidates(N_VOCAB), N_CTX, banned)
    sampler.accept(prompt)
    tokens = []
    for row in logits:
        tokens.append(sampler.sample(row))
        sampler.accept(tokens[-1:])
    sampler.close()
    return tokens


def by_llama_cpp_python(sampling: Sampling, logits: np.ndarray, prompt: tuple[int, ...]) -> list[int]:
    """The chain that the class Llama builds, on arrays filled entry by entry."""
    chain = LlamaSampler()
    chain.add_penalties(
        N_VOCAB,
        sampling.penalty_last_n,
        sampling.repeat_penalty,
        sampling.frequency_penalty,
        sampling.presence_penalty,
    )
    if sampling.temperature == 0:
        chain.add_greedy()
    else:
        chain.add_top_k(sampling.top_k)
        chain.add_typical(1.0, 1)
        chain.add_top_p(sampling.top_p, 1)
        chain.add_min_p(sampling.min_p, 1)
        chain.add_temp(sampling.temperature)
        chain.add_dist(sampling.seed or 0)
    for token in prompt:
        llama_sampler_accept(chain.sampler, token)
    tokens = []
    for row in logits:
        entries = (llama_token_data * N_VOCAB)(*[(i, float(x), 0.0) for i, x in enumerate(row)])
        array = llama_token_data_array(entries, N_VOCAB, -1, False)
        llama_sampler_apply(chain.sampler, array)
        tokens.append(entries[array.selected].id)
        llama_sampler_accept(chain.sampler, tokens[-1])
    chain.close()
    return tokens


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(seed=1),
        Sampling(temperature=0),
        Sampling(seed=2, top_k=0, top_p=1.0, min_p=0.0, temperature=1.3),
        Sampling(seed=3, repeat_penalty=1.3, frequency_penalty=0.4, presence_penalty=0.2),
        Sampling(temperature=0, repeat_penalty=1.5, penalty_last_n=20),
        Sampling(seed=4, top_k=500, min_p=0.2),
    ],
)
def test_equals_llama_cpp_pythons_sampling(sampling: Sampling, logits: np.ndarray) -> None:
    prompt = tuple(int(token) for token in np.argsort(logits[0])[-30:])
    found = drawn(sampling, logits[:15], prompt)
    assert found == by_llama_cpp_python(sampling, logits[:15], prompt)


def test_greedy_is_the_argmax(logits: np.ndarray) -> None:
    best = list(np.argmax(logits, axis=1))
    assert drawn(Sampling(temperature=0), logits) == best
    assert drawn(Sampling(temperature=1e-9), logits) == best
    assert drawn(Sampling(temperature=0, logit_bias={3: -1.0}), logits) == best  # by llama.cpp's own greedy


def test_seed_makes_it_reproducible(logits: np.ndarray) -> None:
    hot = Sampling(temperature=2.0, top_k=0, min_p=0.0, top_p=1.0)
    seeded = [
        drawn(hot.model_copy(update={"seed": seed}), logits) for seed in (11, 11, 12, 2**32 - 1, 2**32 - 1)
    ]
    assert seeded[0] == seeded[1] and seeded[3] == seeded[4]
    assert seeded[0] != seeded[2]
    assert drawn(hot, logits) != drawn(hot, logits)


def test_chains_do_not_disturb_each_other(logits: np.ndarray) -> None:
    settings = [Sampling(seed=seed, repeat_penalty=1.2) for seed in range(4)]
    shared = Candidates(N_VOCAB)
    samplers = [Sampler(sampling, shared, N_CTX) for sampling in settings]
    together: list[list[int]] = [[] for _ in samplers]
    for row in logits:
        for sampler, tokens in zip(samplers, together, strict=True):
            tokens.append(sampler.sample(row))
            sampler.accept(tokens[-1:])
    assert together == [drawn(sampling, logits) for sampling in settings]


def test_logits_are_left_alone(logits: np.ndarray) -> None:
    before = logits.copy()
    drawn(Sampling(seed=1, repeat_penalty=1.5, logit_bias={1: 5.0}), logits, (1, 2, 3))
    assert np.array_equal(before, logits)


def test_bias(logits: np.ndarray) -> None:
    assert set(drawn(Sampling(temperature=0, logit_bias={17: 1e300}), logits)) == {17}
    assert set(drawn(Sampling(seed=1, logit_bias={17: 1000.0}), logits)) == {17}
    best = int(np.argmax(logits[0]))
    assert drawn(Sampling(temperature=0, logit_bias={best: -math.inf}), logits[:1]) != [best]
    assert drawn(Sampling(temperature=0), logits[:1], banned=(best,)) == [int(np.argsort(logits[0])[-2])]
    for token in (-1, N_VOCAB):
        with pytest.raises(InvalidRequestError, match=f"token {token}"):
            drawn(Sampling(logit_bias={token: 1.0}), logits)
    with pytest.raises(InvalidRequestError, match="not a number"):
        drawn(Sampling(logit_bias={1: math.nan}), logits)


def test_prompt_counts_for_penalties(logits: np.ndarray) -> None:
    best = int(np.argmax(logits[0]))
    strong = Sampling(temperature=0, presence_penalty=2.0, frequency_penalty=2.0, repeat_penalty=10.0)
    assert drawn(strong, logits[:1], (best,)) != [best]
    forgotten = strong.model_copy(update={"penalty_last_n": 2})
    assert drawn(forgotten, logits[:1], (best, 0, 1)) == [best]
    everything = strong.model_copy(update={"penalty_last_n": -1})
    assert drawn(everything, logits[:1], (best, *[0] * 200)) != [best]
    assert drawn(strong.model_copy(update={"penalty_last_n": 10**12}), logits[:1], (best,)) != [best]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_logits_that_are_no_numbers(logits: np.ndarray, bad: float, temperature: float) -> None:
    row = logits[0].copy()
    row[N_VOCAB // 2] = bad
    with pytest.raises(WindowError, match="instead of a number"):
        drawn(Sampling(temperature=temperature), row[None])
    with pytest.raises(WindowError):
        drawn(Sampling(temperature=temperature), np.full((1, N_VOCAB), -math.inf, np.float32))
    with pytest.raises(WindowError, match="shape"):
        drawn(Sampling(temperature=temperature), row[None, :-1])


def test_settings_at_their_limits(logits: np.ndarray) -> None:
    for sampling in (
        Sampling(temperature=100.0, seed=1, top_k=10**12),
        Sampling(temperature=1e-5, seed=1, logit_bias={1: 1e300}),
        Sampling(top_p=1e-9, min_p=1.0, seed=1),
        Sampling(repeat_penalty=1e-3, frequency_penalty=-2.0, seed=1),
    ):
        assert all(0 <= token < N_VOCAB for token in drawn(sampling, logits, (1, 2)))
