"""Log-probabilities from logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ROWS = 16  # rows in float64 at a time: a vocabulary may be large


@dataclass(frozen=True)
class Score:
    """How likely a model finds tokens, each after those before it.

    Attributes:
        tokens: the scored token ids.
        logprobs: their log-probabilities (natural logarithm).
        greedy: whether each was the likeliest of its place.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    greedy: bool

    @property
    def total(self) -> float:
        """The log-probability of all of them together."""
        return float(sum(self.logprobs))

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability; 1 for no tokens."""
        return float(np.exp(-self.total / len(self.tokens))) if self.tokens else 1.0


def token_logprobs(logits: NDArray[np.float32], targets: NDArray[Any]) -> NDArray[np.float64]:
    """Log-probabilities [rows] of token ids ``targets`` [rows] under ``logits`` [rows, vocabulary], in
    float64."""
    found = np.empty(len(targets), np.float64)
    for start in range(0, len(targets), _ROWS):
        rows = logits[start : start + _ROWS].astype(np.float64)
        rows -= rows.max(-1, keepdims=True)
        chosen = rows[np.arange(len(rows)), targets[start : start + _ROWS]]
        found[start : start + _ROWS] = chosen - np.log(np.exp(rows).sum(-1))
    return found
