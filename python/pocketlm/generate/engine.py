"""What generation needs of an engine, as types. ``pocketlm._core`` provides it; tests provide slower ones.

Imported by type checkers alone: defining these protocols takes as long as importing three
modules of functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Logits = Literal["none", "last", "all"]


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
    def tokens(self) -> list[int]:
        """The sampled tokens, in order; none without a sampler."""

    @property
    def logprobs(self) -> list[tuple[float, list[tuple[int, float]]]]:
        """Of each token its log-probability and the likeliest tokens with theirs, if the sampler reports
        them."""

    @property
    def logits(self) -> NDArray[np.float32] | None:
        """Logits [rows, vocabulary] of the last token or of all, as asked for."""


class Continuation(Protocol):
    """How one request goes on: when it ends, and what is guessed of it."""

    @property
    def proposed(self) -> int:
        """Tokens that were guessed and computed."""

    @property
    def accepted(self) -> int:
        """Those of them that were right."""

    def draft(self, ids: Sequence[int], seconds: float) -> None:
        """Takes a draft model's guesses at the next tokens, which took so long."""

    def pass_draft(self) -> None:
        """The draft model was not asked, as it would not have paid."""


class Engine(Protocol):
    """Runs steps over a batch of sequences."""

    @property
    def threads(self) -> int:
        """Threads that a step uses."""

    @property
    def isa(self) -> str:
        """Instruction set of its kernels."""

    @property
    def kv_dtype(self) -> str:
        """How its cache stores numbers: ``f16`` or ``int8``."""

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

    def read_bandwidth(self, seconds: float = 0.3) -> float:
        """Bytes per second that its threads read from its weights, measured for so long."""

    def memory(self) -> dict[str, int]:
        """Bytes of weights, cache and scratch."""

    def sequence(self) -> CacheSequence:
        """A new, empty sequence."""

    def step(self, items: list[Any], *, steps: int = 1, seconds: float = 0.0) -> Sequence[StepResult]:
        """Appends tokens to sequences: items are (sequence, token ids, sampler or ``None``, :data:`Logits`,
        continuation or ``None``).

        If all items continue, goes on with what was sampled: until a text ends, for so many steps, and
        beginning none after so many seconds."""

    def interrupt(self) -> None:
        """Makes a running call of several steps return after its present one."""

    def continuation(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        stop_ids: Sequence[int] | None = None,
        guesses: int = 0,
    ) -> Any:
        """The :class:`Continuation` of a request: it ends with one of ``stop_ids`` or after ``max_tokens``;
        at most ``guesses`` tokens are guessed in a step."""

    def drafts(self, continuation: Any, texts: int) -> int:
        """How many tokens a draft model should guess for one of ``texts`` that generate."""

    def prewarm(self) -> None:
        """Reads the weights' pages in and starts the threads."""

    @property
    def block_bytes(self) -> int:
        """Bytes of a block of the cache."""

    def export(self, sequence: Any) -> bytes:
        """Keys and values of a sequence: its blocks in order."""

    def restore(self, length: int, data: bytes) -> Any:
        """A sequence of ``length`` tokens from what :meth:`export` gave."""

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
