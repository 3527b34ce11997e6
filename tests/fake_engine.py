"""An engine whose logits depend on nothing but the tokens so far, and which checks how it is used.

Any mistake in what the scheduler feeds (a token lost, repeated, out of order, in the wrong sequence) changes
the logits of all that follows. It keeps the rules of the real engine: capacity in blocks, rows per step, no
use after free.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from pocketlm.generate.pace import Pace

BLOCK = 64


class FixedPace(Pace):
    """So many rows of prompts a step, however fast the machine is."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self._fixed = rows

    def rows(self, most: int, shared: bool) -> int:
        return min(self._fixed, most)


class FakeSequence:
    def __init__(self, engine: FakeEngine, ids: list[int]) -> None:
        self.engine, self.ids, self.freed = engine, ids, False
        engine.live.add(self)

    @property
    def length(self) -> int:
        assert not self.freed
        return len(self.ids)

    def fork(self) -> FakeSequence:
        assert not self.freed
        return FakeSequence(self.engine, list(self.ids))

    def truncate(self, length: int) -> None:
        assert not self.freed and 0 <= length <= len(self.ids)
        del self.ids[length:]

    def free(self) -> None:
        assert not self.freed
        self.freed = True
        self.engine.live.discard(self)


class FakeResult:
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[tuple[float, list[tuple[int, float]]]] = []
        self.logits: np.ndarray | None = None


class FakeContinuation:
    """Ends as the real one does, and guesses nothing."""

    proposed = accepted = 0

    def __init__(self, max_tokens: int, stop_ids: Any) -> None:
        self.left, self.stops, self.ended = max_tokens, frozenset(stop_ids or ()), False

    def take(self, token: int) -> None:
        assert not self.ended
        self.left -= 1
        self.ended = self.left == 0 or token in self.stops


class FakeSampler:
    """Greedy at temperature 0, otherwise one draw a token from a generator keyed by seed and count."""

    def __init__(
        self, *, temperature: float, seed: int, logprobs: int | None, logit_bias: Any = None, **rest: Any
    ) -> None:
        self.temperature, self.seed, self.logprobs, self.bias, self.rest = (
            temperature,
            seed,
            logprobs,
            logit_bias,
            rest,
        )
        self.count = 0

    def sample(self, logits: np.ndarray, result: FakeResult) -> None:
        logits = logits.astype(np.float64)
        for token, bias in (self.bias or {}).items():
            logits[token] += bias
        logprobs = logits - logits.max()
        logprobs -= np.log(np.exp(logprobs).sum())
        if self.temperature == 0:
            token = int(logits.argmax())
        else:
            p = np.exp(logprobs / self.temperature)
            token = int(np.random.default_rng([self.seed, self.count]).choice(len(p), p=p / p.sum()))
        self.count += 1
        result.tokens.append(token)
        if self.logprobs is not None:
            order = np.argsort(-logprobs, kind="stable")[: self.logprobs]
            result.logprobs.append((float(logprobs[token]), [(int(i), float(logprobs[i])) for i in order]))


class FakeEngine:
    threads, isa, kv_dtype = 1, "fake", "f16"
    weight_bytes_per_token = 1000

    def __init__(
        self, vocab_size: int, *, context: int = 256, cache_tokens: int = 1024, max_rows: int = 64
    ) -> None:
        self.vocab_size, self.context_length = vocab_size, context
        self.cache_tokens, self.max_rows = cache_tokens, max_rows
        self.live: set[FakeSequence] = set()
        self.steps: list[list[int]] = []  # tokens of each item, step by step
        self.closed, self.interrupted = False, False
        self.most_steps = 5  # of one call; the number changes from call to call
        self.before_step: Callable[[], None] = lambda: None
        self._lock = threading.Lock()

    @property
    def cache_tokens_free(self) -> int:
        return self.cache_tokens - sum(-(-len(s.ids) // BLOCK) * BLOCK for s in self.live)

    def memory(self) -> dict[str, int]:
        return {"weights": 1000, "cache": 1000, "scratch": 0}

    def sequence(self) -> FakeSequence:
        return FakeSequence(self, [])

    def logits(self, ids: list[int]) -> np.ndarray:
        digest = hashlib.blake2b(np.asarray(ids, np.int64).tobytes(), digest_size=8).digest()
        return (
            3 * np.random.default_rng(int.from_bytes(digest, "little")).standard_normal(self.vocab_size)
        ).astype(np.float32)

    def continuation(
        self, prompt: list[int], *, max_tokens: int, stop_ids: Any = None, guesses: int = 0
    ) -> FakeContinuation:
        assert prompt and 0 <= guesses <= 16
        return FakeContinuation(max_tokens, stop_ids)

    def drafts(self, continuation: FakeContinuation, texts: int) -> int:
        return 0

    def prewarm(self) -> None:
        pass

    def interrupt(self) -> None:
        self.interrupted = True

    def export(self, sequence: FakeSequence) -> bytes:
        with self._lock:
            return np.asarray(sequence.ids, np.int64).tobytes()

    def restore(self, length: int, data: bytes) -> FakeSequence:
        # As the real one, waits for a running step.
        with self._lock:
            ids = np.frombuffer(data, np.int64).tolist()
            assert len(ids) == length and -(-length // BLOCK) * BLOCK <= self.cache_tokens_free
            return FakeSequence(self, ids)

    def step(self, items: list[Any], *, steps: int = 1, seconds: float = 0.0) -> list[FakeResult]:
        assert self._lock.acquire(blocking=False), "two steps at once"
        try:
            assert not self.closed and items and steps >= 1 and seconds >= 0
            assert sum(len(item[1]) for item in items) <= self.max_rows
            assert len({id(item[0]) for item in items}) == len(items)
            goes_on = all(sampler and continuation for _, _, sampler, _, continuation in items)
            results = [FakeResult() for _ in items]
            self.before_step()
            for _ in range(min(steps, 1 + len(self.steps) % self.most_steps)):
                self.steps.append([len(item[1]) for item in items])
                for item, result in zip(items, results, strict=True):
                    self._run(*item, result)
                if not goes_on or self.interrupted or any(item[4].ended for item in items):
                    break
                items = [
                    (s, result.tokens[-1:], *rest)
                    for (s, _, *rest), result in zip(items, results, strict=True)
                ]
            self.interrupted = False
            return results
        finally:
            self._lock.release()

    def _run(
        self,
        sequence: FakeSequence,
        ids: list[int],
        sampler: FakeSampler | None,
        want: str,
        continuation: FakeContinuation | None,
        result: FakeResult,
    ) -> None:
        assert not sequence.freed and ids and all(0 <= i < self.vocab_size for i in ids)
        rows = []
        for token in ids:
            sequence.ids.append(token)
            if want == "all":
                rows.append(self.logits(sequence.ids))
        assert len(sequence.ids) <= self.context_length and self.cache_tokens_free >= 0
        if sampler is not None:
            sampler.sample(self.logits(sequence.ids), result)
            if continuation is not None:
                continuation.take(result.tokens[-1])
        if want == "all":
            result.logits = np.stack(rows)
        elif want == "last":
            result.logits = self.logits(sequence.ids)[None]

    def close(self) -> None:
        assert not self.live, "sequences outlive the engine"
        self.closed = True
