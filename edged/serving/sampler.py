"""Choosing the next token with llama.cpp's own samplers: one chain per sequence."""

from __future__ import annotations

import ctypes
import math
import secrets
from collections.abc import Iterable, Sequence

import llama_cpp.llama_cpp as llama
import numpy as np
import numpy.typing as npt

from edged.errors import InvalidRequestError, WindowError
from edged.serving.generation import Sampling

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data
_RANDOM_SEED = 2**32 - 1  # what llama.cpp takes for "seed from the clock"
_COLDEST = 1e-6  # below this temperature logits overflow float32; the best token is certain long before
_LARGEST_BIAS = 1e6  # far beyond any logit, far from overflowing one


class Candidates:
    """The vocabulary as the array that llama.cpp's samplers work on; shared by all chains of one thread."""

    def __init__(self, n_vocab: int) -> None:
        self.n_vocab = n_vocab
        self._rows = np.empty(n_vocab, _CANDIDATE)
        self._ids = np.arange(n_vocab, dtype=np.int32)
        data = self._rows.ctypes.data_as(ctypes.POINTER(llama.llama_token_data))
        self._array = llama.llama_token_data_array(data, n_vocab, -1, False)

    def choose(self, chain: llama.llama_sampler_p, logits: npt.NDArray[np.float32]) -> int:
        """Run `chain` over `logits` of shape (n_vocab,) and give the token it selects."""
        self._rows["id"] = self._ids  # sorting samplers leave them in another order
        self._rows["logit"] = logits
        self._array.size = self.n_vocab
        self._array.selected = -1
        self._array.sorted = False
        llama.llama_sampler_apply(chain, ctypes.byref(self._array))
        return int(self._rows["id"][self._array.selected])


class Sampler:
    """One sequence's chain: logit bias, penalties, top-k, top-p, min-p, temperature, draw.

    temperature 0 takes the most likely token after bias and penalties. The same seed and the same logits
    give the same tokens; without a seed one is drawn. Not thread safe, like the `candidates` it uses.
    `banned` tokens are never chosen. Raises InvalidRequestError for a bias on a token that does not exist.
    """

    def __init__(
        self, sampling: Sampling, candidates: Candidates, n_ctx: int, banned: Iterable[int] = ()
    ) -> None:
        self._candidates = candidates
        bias = check_bias(sampling.logit_bias, candidates.n_vocab) | dict.fromkeys(banned, -math.inf)
        self._never = np.array([token for token, by in bias.items() if by == -math.inf], np.intp)
        greedy = sampling.temperature < _COLDEST
        last_n = n_ctx if sampling.penalty_last_n < 0 else min(sampling.penalty_last_n, n_ctx)
        self._looks_back = last_n if _penalizes(sampling) else 0
        self._plain_argmax = greedy and len(self._never) == len(bias) and not self._looks_back
        self._chain = None
        if not self._plain_argmax:
            self._chain = self._build(sampling, bias, greedy)

    def _build(self, sampling: Sampling, bias: dict[int, float], greedy: bool) -> llama.llama_sampler_p:
        n_vocab = self._candidates.n_vocab
        params = llama.llama_sampler_chain_default_params()
        params.no_perf = True
        chain = llama.llama_sampler_chain_init(params)

        def add(link: llama.llama_sampler_p) -> None:
            llama.llama_sampler_chain_add(chain, link)

        if bias:
            entries = (llama.llama_logit_bias * len(bias))(*bias.items())
            add(llama.llama_sampler_init_logit_bias(n_vocab, len(bias), entries))
        if self._looks_back:
            add(
                llama.llama_sampler_init_penalties(
                    n_vocab,
                    self._looks_back,
                    sampling.repeat_penalty,
                    sampling.frequency_penalty,
                    sampling.presence_penalty,
                )
            )
        if greedy:
            add(llama.llama_sampler_init_greedy())
            return chain
        add(llama.llama_sampler_init_top_k(min(sampling.top_k, n_vocab)))
        add(llama.llama_sampler_init_top_p(sampling.top_p, 1))
        add(llama.llama_sampler_init_min_p(sampling.min_p, 1))
        add(llama.llama_sampler_init_temp(sampling.temperature))
        add(llama.llama_sampler_init_dist(_seed(sampling.seed)))
        return chain

    def accept(self, tokens: Sequence[int]) -> None:
        """Tokens that now stand before the next one, oldest first; penalties count them.

        The prompt is accepted too, as llama.cpp's own server does.
        """
        if self._looks_back:
            for token in tokens[-self._looks_back :]:
                llama.llama_sampler_accept(self._chain, token)

    def sample(self, logits: npt.NDArray[np.float32]) -> int:
        """The next token from `logits` of shape (n_vocab,); the caller accepts it.

        Raises WindowError where the logits are no numbers.
        """
        if logits.shape != (self._candidates.n_vocab,):
            raise WindowError(f"logits of shape {logits.shape} for {self._candidates.n_vocab} tokens")
        best = int(np.argmax(logits))  # the first NaN, if there is one
        if not math.isfinite(logits[best]):
            raise WindowError(
                f"the model computed {logits[best]} instead of a number: "
                "its weights are damaged or its values overflow on this device"
            )
        if not self._plain_argmax:
            return self._candidates.choose(self._chain, logits)
        if best not in self._never:
            return best
        allowed = logits.copy()
        allowed[self._never] = -math.inf
        return int(np.argmax(allowed))

    def close(self) -> None:
        """Frees the chain; idempotent."""
        if self._chain is not None:
            llama.llama_sampler_free(self._chain)
            self._chain = None
            self._looks_back = 0


def check_bias(bias: dict[int, float], n_vocab: int) -> dict[int, float]:
    """The biases, within what llama.cpp can compute. Raises InvalidRequestError for unknown tokens or NaN."""
    for token, value in bias.items():
        if not 0 <= token < n_vocab:
            raise InvalidRequestError(
                f"logit_bias names token {token}; the model has tokens 0 to {n_vocab - 1}"
            )
        if math.isnan(value):
            raise InvalidRequestError(f"logit_bias of token {token} is not a number")
    return {t: v if v == -math.inf else max(-_LARGEST_BIAS, min(v, _LARGEST_BIAS)) for t, v in bias.items()}


def _penalizes(sampling: Sampling) -> bool:
    return (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty) != (1.0, 0.0, 0.0)


def _seed(seed: int | None) -> int:
    drawn = secrets.randbits(32) if seed is None else seed
    return drawn - 1 if drawn == _RANDOM_SEED else drawn
