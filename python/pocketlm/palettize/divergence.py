"""How far a model is from its source on held-out sequences, measured with the engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pocketlm._core import Engine, WeightStore
from pocketlm.errors import WeightError
from pocketlm.evaluate.compare import divergences
from pocketlm.loading import LoadedModel


class Divergence:
    """Kullback-Leibler divergence from a source, over token ids of some sequences.

    The source's logits [tokens, vocabulary] are computed when first needed, and kept.
    """

    def __init__(self, model: LoadedModel, sequences: list[list[int]], threads: int | None) -> None:
        self._model, self._sequences, self._threads = model, sequences, threads
        self._source: list[NDArray[np.float32]] = []

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(map(len, self._sequences))

    @property
    def digest(self) -> str:
        """Tells these sequences from others."""
        return hashlib.sha256(json.dumps(self._sequences).encode()).hexdigest()

    def of(self, store: WeightStore) -> float:
        """Mean over the tokens of KL(source || model) of the next token's distribution, in nats. ``store``
        holds the weights of a model of the source's graph.

        Raises:
            WeightError: a model gives numbers that are not finite.
            MemoryLimitError: there is no room for the engine.
        """
        if not self._source:
            self._source = list(self._logits(self._model.store))
        total = 0.0
        for logits, source in zip(self._logits(store), self._source, strict=True):
            total += float(divergences(logits, source).sum())
        if not np.isfinite(total):
            raise WeightError(f"{self._model.path}: gives logits that are not finite numbers")
        return total / self.tokens

    def _logits(self, store: WeightStore) -> Iterator[NDArray[np.float32]]:
        longest = max(map(len, self._sequences))
        engine = Engine(
            self._model.graph.to_json(),
            store,
            threads=self._threads,
            cache_tokens=longest,
            max_rows=longest,
        )
        try:
            for ids in self._sequences:
                sequence = engine.sequence()
                (found,) = engine.step([(sequence, ids, None, "all")])
                sequence.free()
                assert found.logits is not None
                yield found.logits
        finally:
            engine.close()
