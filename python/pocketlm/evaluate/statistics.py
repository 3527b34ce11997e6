"""Means over tokens with their standard errors, where tokens come in windows.

Tokens of one window share a context and often a document, so they are no independent samples: the windows
are. A mean over all tokens is a ratio of two sums over windows, and its error follows from how the windows
scatter about it (Cochran, Sampling Techniques, 1977, section 6.3, with whole windows as the units sampled).
Windows that follow each other in one document still resemble each other, which this does not see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Estimate:
    """A figure with its standard error, which is ``None`` where a single window shows no scatter."""

    value: float
    se: float | None

    def scaled(self, factor: float) -> Estimate:
        """``factor`` times this."""
        return Estimate(self.value * factor, None if self.se is None else abs(factor) * self.se)

    def exp(self) -> Estimate:
        """The exponential, with the error of the first order; of at most exp(700), near the largest
        number."""
        value = math.exp(min(self.value, 700.0))
        return Estimate(value, None if self.se is None else value * self.se)


def mean(sums: ArrayLike, counts: ArrayLike) -> Estimate:
    """Sum of ``sums`` over sum of ``counts``, both [windows]."""
    tops, bottoms = np.asarray(sums, np.float64), np.asarray(counts, np.float64)
    total = float(bottoms.sum())
    value = float(tops.sum()) / total
    if len(tops) < 2:
        return Estimate(value, None)
    scatter = float(((tops - value * bottoms) ** 2).sum())
    return Estimate(value, math.sqrt(len(tops) / (len(tops) - 1) * scatter) / total)


def quantile(values: ArrayLike, counts: ArrayLike, share: float) -> Estimate:
    """The least of ``values`` [tokens] that at least ``share`` of them do not exceed.

    ``counts`` [windows] says how many consecutive values belong to each window. The error is that of the
    share of values up to the quantile, carried over by the values around it (Woodruff, JASA 47, 1952);
    ``None`` also where it reaches beyond the greatest value, of which nothing is known: for a share of 0.999
    always below 1,000 values.
    """
    each: NDArray[np.float64] = np.asarray(values, np.float64)
    sizes = np.asarray(counts, np.int64)
    ordered = np.sort(each)
    value = _at(ordered, share)
    ends = np.cumsum(sizes)
    below = np.concatenate([[0], np.cumsum(each <= value)])
    found = mean(below[ends] - below[ends - sizes], sizes)
    count = len(ordered)
    if found.se is None or _rank(count, share) >= count or _rank(count, share + found.se) > count:
        return Estimate(value, None)
    return Estimate(value, (_at(ordered, share + found.se) - _at(ordered, share - found.se)) / 2)


def _at(ordered: NDArray[np.float64], share: float) -> float:
    return float(ordered[max(_rank(len(ordered), share), 1) - 1])


def _rank(count: int, share: float) -> int:
    """Which of ``count`` sorted values, from 1, is the least that so large a share does not exceed."""
    return math.ceil(share * count - 1e-9)
