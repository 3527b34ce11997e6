"""One sequence's work for the scheduler: a text to generate, or tokens to evaluate."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

from pocketlm.detokenize import Detokenizer
from pocketlm.generate.params import SamplingParams
from pocketlm.generate.result import Chunk, Completion, FinishReason, Timings, TokenLogprob, Usage
from pocketlm.generate.stops import StopStrings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pocketlm.generate.engine import CacheSequence, Continuation, Logits, StepResult

    Item = tuple[CacheSequence | None, list[int], Any, Logits, Continuation | None]


class Job(ABC):
    """Tokens to run through the engine. The scheduler alone changes it, except for ``cancelled``.

    Attributes:
        prompt: token ids to begin with.
        total: most tokens that its sequence will hold.
        owner: whose sequence is taken up and kept (see :class:`pocketlm.generate.prefixes.PrefixCache`).
        done: tokens of the prompt that are in the cache.
        finished: nothing more will come.
        error: what ended it, if not its own end.
    """

    logits: Logits = "none"
    keeps = False  # whether the sequence is worth keeping afterwards

    def __init__(self, prompt: Sequence[int], total: int, owner: Hashable | None = None) -> None:
        self.prompt, self.total, self.owner = list(prompt), total, owner
        self.sequence: CacheSequence | None = None
        self.done = 0
        self.finished = False
        self.cancelled = False
        self.error: BaseException | None = None
        self.created = time.perf_counter()

    @property
    def left(self) -> int:
        """Tokens of the prompt still to compute."""
        return len(self.prompt) - self.done

    def known(self) -> list[int]:
        """What of the prompt may be known already: all but the last token of this."""
        return self.prompt

    def begin(self, sequence: CacheSequence) -> None:
        """The job is admitted; ``sequence`` may hold a beginning of the prompt already."""
        self.sequence, self.done = sequence, sequence.length

    def item(self, rows: int) -> Item:
        """What to run next, at most ``rows`` tokens of the prompt."""
        return self.sequence, self.prompt[self.done : self.done + rows], None, self.logits, None

    @abstractmethod
    def accept(self, count: int, result: StepResult) -> None:
        """Takes the result of the last item, which had ``count`` tokens."""

    def held(self) -> list[int]:
        """The token ids that the sequence holds."""
        return self.prompt[: self.done]

    def has_news(self) -> bool:
        """Whether a waiting caller should look."""
        return self.finished

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more will come."""
        self.finished, self.error = True, error


class Evaluation(Job):
    """Runs tokens and hands the logits of each, from the token ``first`` on, to ``receive(first position,
    logits [rows, vocabulary])``. With an owner the sequence is taken up and kept."""

    logits: Logits = "all"

    def __init__(
        self,
        ids: Sequence[int],
        receive: Callable[[int, NDArray[np.float32]], None],
        first: int = 0,
        owner: Hashable | None = None,
    ) -> None:
        super().__init__(ids, len(ids), owner)
        self.keeps = owner is not None
        self._receive, self._first = receive, first

    def known(self) -> list[int]:
        # What is taken up gives no logits, so it must end before the token ``first``.
        return self.prompt[: self._first + 1]

    def item(self, rows: int) -> Item:
        if self.done >= self._first:
            return super().item(rows)
        ids = self.prompt[self.done : min(self.done + rows, self._first)]
        return self.sequence, ids, None, "none", None

    def accept(self, count: int, result: StepResult) -> None:
        start, self.done = self.done, self.done + count
        if result.logits is not None:
            self._receive(start, result.logits)
        if not self.left:
            self.end()


class Generation(Job):
    """Generates a text. Chunks are taken with :meth:`take`, the whole with :meth:`completion`."""

    keeps = True

    def __init__(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        max_tokens: int,
        sampler: Any,
        detokenizer: Detokenizer,
        *,
        continuation: Continuation,
        draft_sampler: Callable[[list[int]], Any],
        stop_ids: frozenset[int],
        token_text: Callable[[int], str],
        seed: int,
        owner: Hashable | None = None,
    ) -> None:
        # The last token is never run.
        super().__init__(prompt, len(prompt) + max_tokens - 1, owner)
        self.tokens: list[int] = []
        self.text = ""
        self.reason: FinishReason = "cancelled"
        self.stop_reason: str | int | None = None
        self.logprobs: list[TokenLogprob] | None = None if params.logprobs is None else []
        self._sampler, self._detokenizer, self._stops = sampler, detokenizer, StopStrings(params.stop)
        self._stop_ids, self._token_text, self._most, self.seed = stop_ids, token_text, max_tokens, seed
        self.continuation, self.draft_sampler = continuation, draft_sampler
        # Whether what a sampler chooses depends on the tokens before.
        self.penalized = params.repetition_penalty not in (None, 1) or any(
            (params.presence_penalty, params.frequency_penalty)
        )
        self.patient = False  # nobody looks at the text before it is finished
        self._reused = 0
        self._started: float | None = None
        self._first: float | None = None
        self._ended = self.created
        self._taken = (0, 0)  # characters, tokens
        self.listeners: list[Callable[[], None]] = []  # called once there is news
        self._guesses = (0, 0)  # proposed, accepted

    def begin(self, sequence: CacheSequence) -> None:
        super().begin(sequence)
        self._reused, self._started = self.done, time.perf_counter()

    @property
    def has_stop_strings(self) -> bool:
        """Whether the text may end at any token, for a reason that the engine does not know."""
        return self._stops.any

    def item(self, rows: int) -> Item:
        if self.left:
            ids = self.prompt[self.done : self.done + rows]
            sampler = self._sampler if len(ids) == self.left else None
            return self.sequence, ids, sampler, "none", self.continuation
        return self.sequence, self.tokens[-1:], self._sampler, "none", self.continuation

    def accept(self, count: int, result: StepResult) -> None:
        self.done += min(count, self.left)
        # Noted here, since in a step the engine holds the continuation.
        self._guesses = self.continuation.proposed, self.continuation.accepted
        tokens = result.tokens
        if not tokens:
            return
        if not self.tokens:
            self._first = time.perf_counter()
        if self.logprobs is not None:
            for token, (logprob, top) in zip(tokens, result.logprobs, strict=True):
                self.logprobs.append(TokenLogprob(token, self._token_text(token), logprob, tuple(top)))
        if self._stops.any:
            self._accept_singly(tokens)
            return
        # The engine stops where a text ends, so only the last token can be one that ends it.
        self.tokens += tokens
        if tokens[-1] in self._stop_ids:
            self.text += self._detokenizer.push_all(tokens[:-1])
            self._finish("stop", tokens[-1])
            return
        self.text += self._detokenizer.push_all(tokens)
        if len(self.tokens) >= self._most:
            self._finish("length", None)

    def _accept_singly(self, tokens: list[int]) -> None:
        for token in tokens:
            self.tokens.append(token)
            if token in self._stop_ids:
                self._finish("stop", token)
                break
            self.text += self._stops.push(self._detokenizer.push(token))
            if self._stops.found is not None:
                self._finish("stop", self._stops.found)
                break
            if len(self.tokens) >= self._most:
                self._finish("length", None)
        # What was computed beyond the end is forgotten.
        if self.logprobs is not None:
            del self.logprobs[len(self.tokens) :]

    def end(self, error: BaseException | None = None) -> None:
        if not self.finished and error is None:
            try:
                self._finish("cancelled", None)
            except Exception as problem:  # who waits must learn of the end all the same
                error = problem
        super().end(error)

    def _finish(self, reason: FinishReason, stop: str | int | None) -> None:
        if self._stops.found is None:
            self.text += self._stops.push(self._detokenizer.flush())
            self.text += self._stops.flush()
            if self._stops.found is not None:
                reason, stop = "stop", self._stops.found
        self.reason, self.stop_reason, self._ended = reason, stop, time.perf_counter()
        self.finished = True

    def held(self) -> list[int]:
        ids = self.prompt[: self.done] + self.tokens
        return ids[: self.sequence.length] if self.sequence is not None else []

    def has_news(self) -> bool:
        return self.finished or len(self.text) > self._taken[0]

    def take(self) -> Chunk | None:
        """What is new since the last call; ``None`` after the last chunk, which has the ``finish_reason``."""
        characters, tokens = self._taken
        if characters < 0:
            return None
        last = self.finished and self.error is None
        self._taken = (-1 if last else len(self.text)), len(self.tokens)
        return Chunk(
            text=self.text[characters:],
            tokens=tuple(self.tokens[tokens:]),
            finish_reason=self.reason if last else None,
            logprobs=None if self.logprobs is None else tuple(self.logprobs[tokens:]),
        )

    def completion(self) -> Completion:
        """The result so far; the whole once the job has finished."""
        end = self._ended if self.finished else time.perf_counter()
        started = end if self._started is None else self._started
        first = end if self._first is None else self._first
        return Completion(
            text=self.text,
            tokens=tuple(self.tokens),
            finish_reason=self.reason,
            stop_reason=self.stop_reason,
            logprobs=None if self.logprobs is None else tuple(self.logprobs),
            seed=self.seed,
            usage=Usage(len(self.prompt), self._reused, len(self.tokens), *self._guesses),
            timings=Timings(
                queued_seconds=started - self.created,
                prefill_seconds=first - started,
                decode_seconds=end - first,
                prefill_tokens=self.done - self._reused,
                decode_tokens=max(0, len(self.tokens) - 1),
            ),
        )
