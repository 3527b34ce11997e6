"""What generation needs of an engine, as types. ``pocketlm._core`` provides it; tests provide slower ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Logits = Literal["none", "last", "all"]
BLOCK = 64  # tokens of a block of the key-value cache


class CacheSequence(Protocol):
    """Keys and values of one sequence of tokens in the engine's cache."""

    @property
    def length(self) -> int:
        """Tokens in it."""

    def fork(self) -> CacheSequence:
        """A second sequence with the same tokens, sharing their memory."""

    def truncate(self, length: int) -> None:
        """Drops the tokens from ``length`` on."""

    def free(self) -> None:
        """Gives the memory back; the sequence must not be used again."""


class StepResult(Protocol):
    """What one sequence of a step yields."""

    @property
    def token(self) -> int | None:
        """The sampled token, if a sampler was given."""

    @property
    def logprob(self) -> float | None:
        """Its log-probability, if the sampler reports it."""

    @property
    def top(self) -> Sequence[tuple[int, float]]:
        """The likeliest tokens and their log-probabilities."""

    @property
    def logits(self) -> NDArray[np.float32] | None:
        """Logits [rows, vocabulary] of the last token or of all, as asked for."""


class Engine(Protocol):
    """Runs steps over a batch of sequences."""

    @property
    def threads(self) -> int:
        """Threads that a step uses."""

    @property
    def isa(self) -> str:
        """Instruction set of its kernels."""

    @property
    def vocab_size(self) -> int:
        """Number of logits."""

    @property
    def context_length(self) -> int:
        """Positions that the model was made for."""

    @property
    def max_rows(self) -> int:
        """Most tokens in one step."""

    @property
    def cache_tokens(self) -> int:
        """Capacity of the key-value cache, over all sequences."""

    @property
    def cache_tokens_free(self) -> int:
        """What is left of it."""

    @property
    def weight_bytes_per_token(self) -> int:
        """Bytes of weights that a decode step reads."""

    def memory(self) -> dict[str, int]:
        """Bytes of weights, cache and scratch."""

    def sequence(self) -> CacheSequence:
        """A new, empty sequence."""

    def step(self, items: list[Any]) -> Sequence[StepResult]:
        """Appends tokens to sequences: items are (sequence, token ids, sampler or ``None``,
        :data:`Logits`)."""

    def close(self) -> None:
        """Frees everything."""


class SamplerFactory(Protocol):
    """Makes the sampler of one request."""

    def __call__(
        self,
        *,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        repetition_penalty: float,
        presence_penalty: float,
        frequency_penalty: float,
        logit_bias: dict[int, float] | None,
        seed: int,
        logprobs: int | None,
        history: Sequence[int],
    ) -> Any:
        """A sampler; ``history`` holds the prompt."""
