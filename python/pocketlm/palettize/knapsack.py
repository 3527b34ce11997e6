"""The multiple-choice knapsack: one choice for each item, least total value within every limit.

The multipliers of the Lagrangian dual price the limits; for one limit that is the convex hull of each item's
choices (Kellerer, Pferschy, Pisinger, Knapsack Problems, 2004, chapter 11). A greedy pass at these prices
gives a first solution. What it leaves open is settled exactly: partial solutions are listed item by item,
those that another one dominates or whose bound cannot beat the best known are dropped (Nemhauser and Ullmann,
Management Science 15, 1969). The lists are short, as the bound is nearly tight where there are many items.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MOST_STATES = 5_000  # of a list; beyond that the most promising stay
_BISECTIONS, _ELLIPSOIDS = 100, 400

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Solution:
    """The choice of each item.

    Attributes:
        picks: index of the choice of each item.
        value: sum of their values.
        bound: no choice within the limits has less value.
        exact: whether it is certain that no other choice within the limits has less value.
    """

    picks: tuple[int, ...]
    value: float
    bound: float
    exact: bool


def solve(
    values: Sequence[Sequence[float]],
    weights: Sequence[Sequence[Sequence[float]]],
    limits: Sequence[float],
) -> Solution | None:
    """The least sum of ``values[item][choice]`` such that for each limit ``j`` the sum of
    ``weights[item][choice][j]`` does not exceed ``limits[j]``; ``None`` where no choice does that.

    All numbers must be finite. With more than one limit, whether there is any choice at all may be missed
    where the limits leave almost none.
    """
    tables = _Tables(values, weights, limits)
    if (tables.least.sum(axis=0) > tables.limits).any():
        return None
    prices = tables.prices()
    first = tables.improved(tables.repaired(tables.cheapest(prices)))
    picks, exact = tables.settled(prices, first)
    if picks is None:
        return None
    return Solution(tuple(picks.tolist()), tables.value(picks), tables.bound(prices), exact)


class _Tables:
    """Values [items, choices] and weights [items, choices, limits]; a choice that is not there costs
    infinity."""

    def __init__(
        self,
        values: Sequence[Sequence[float]],
        weights: Sequence[Sequence[Sequence[float]]],
        limits: Sequence[float],
    ) -> None:
        most = max((len(row) for row in values), default=1)
        self.limits: Floats = np.array(limits, np.float64).reshape(-1)
        self.values: Floats = np.full((len(values), most), np.inf)
        self.weights: Floats = np.zeros((len(values), most, len(self.limits)))
        for item, (row, loads) in enumerate(zip(values, weights, strict=True)):
            self.values[item, : len(row)] = row
            self.weights[item, : len(row)] = np.asarray(loads, np.float64).reshape(len(row), -1)
        self.there = np.isfinite(self.values)
        self.rows = np.arange(len(values))
        shown = np.where(self.there[..., None], self.weights, np.inf)
        self.least: Floats = shown.min(axis=1, initial=np.inf)  # [items, limits]
        # For prices, limits are brought to one scale: the room between the least and the most.
        most_weight = np.where(self.there[..., None], self.weights, -np.inf).max(axis=1, initial=-np.inf)
        room = (most_weight - self.least).sum(axis=0) if len(values) else np.zeros(len(self.limits))
        self.scale: Floats = np.where(room > 0, room, 1.0)

    def value(self, picks: Ints) -> float:
        return float(self.values[self.rows, picks].sum())

    def loads(self, picks: Ints) -> Floats:
        found: Floats = self.weights[self.rows, picks].sum(axis=0)
        return found

    def priced(self, prices: Floats) -> Floats:
        found: Floats = self.values + self.weights @ prices
        return found

    def cheapest(self, prices: Floats) -> Ints:
        found: Ints = self.priced(prices).argmin(axis=1)
        return found

    def bound(self, prices: Floats) -> float:
        """The Lagrangian's dual: a lower bound for any prices from 0 up."""
        return float(self.priced(prices).min(axis=1).sum() - prices @ self.limits)

    def prices(self) -> Floats:
        """Multipliers of the limits that make the bound as high as can be."""
        count = len(self.limits)
        alone = np.array([self._price(j) for j in range(count)])
        if count < 2:
            return alone
        spread = float(np.where(self.there, self.values, 0.0).max(initial=0.0)) or 1.0
        units = np.where(alone > 0, alone, spread / self.scale)
        return self._ellipsoid(units, alone)

    def _price(self, j: int) -> float:
        """The least price of one limit, without the others, at which it is kept."""

        def kept(price: float) -> bool:
            prices = np.zeros(len(self.limits))
            prices[j] = price
            return bool(self.loads(self.cheapest(prices))[j] <= self.limits[j])

        if kept(0.0):
            return 0.0
        low, high = 0.0, 1.0 / float(self.scale[j])
        while not kept(high) and high < 1e300:
            low, high = high, high * 4
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (low, middle) if kept(middle) else (middle, high)
        return high

    def _ellipsoid(self, units: Floats, alone: Floats) -> Floats:
        """The ellipsoid method (Shor; Yudin and Nemirovski): the dual is concave and has corners. Prices are
        counted in ``units``."""
        n = len(units)
        at, shape = alone / units, 16.0 * n * np.eye(n)
        best, highest = np.zeros(n), self.bound(np.zeros(n))
        for _ in range(_ELLIPSOIDS):
            if (at < 0).any():
                uphill = (at < 0).astype(np.float64)
            else:
                prices = at * units
                if (height := self.bound(prices)) > highest:
                    best, highest = prices, height
                uphill = (self.loads(self.cheapest(prices)) - self.limits) * units
            length = float(uphill @ shape @ uphill)
            if not 0 < length < np.inf:
                break
            step = shape @ uphill / np.sqrt(length)
            at = at + step / (n + 1)
            shape = n * n / (n * n - 1.0) * (shape - 2.0 / (n + 1) * np.outer(step, step))
        return best

    def repaired(self, picks: Ints) -> Ints | None:
        """Picks changed, one by one, until all limits are kept; ``None`` where that leads nowhere."""
        for _ in range(4 * self.values.size):
            over = np.maximum(self.loads(picks) - self.limits, 0) / self.scale
            if not over.any():
                return picks
            after = self.loads(picks) + self.weights - self.weights[self.rows, picks][:, None]
            less = over.sum() - (np.maximum(after - self.limits, 0) / self.scale).sum(axis=-1)
            more = np.maximum(self.values - self.values[self.rows, picks][:, None], 0.0)
            with np.errstate(divide="ignore", invalid="ignore"):
                rate = np.where(self.there & (less > 0), more / less, np.inf)
            if not np.isfinite(rate).any():
                return None
            item, choice = np.unravel_index(rate.argmin(), rate.shape)
            picks = picks.copy()
            picks[item] = choice
        return None

    def improved(self, picks: Ints | None) -> Ints | None:
        """Single changes that still fit, the one that gains most first."""
        while picks is not None:
            after = self.loads(picks) + self.weights - self.weights[self.rows, picks][:, None]
            gain = self.values[self.rows, picks][:, None] - self.values
            gain = np.where((after <= self.limits).all(axis=-1), gain, 0.0)
            if not (gain > 0).any():
                break
            item, choice = np.unravel_index(gain.argmax(), gain.shape)
            changed = picks.copy()
            changed[item] = choice
            if self.value(changed) >= self.value(picks):  # the gain was lost in rounding
                break
            picks = changed
        return picks

    def settled(self, prices: Floats, first: Ints | None) -> tuple[Ints | None, bool]:
        """The best picks, and whether that is certain."""
        priced = self.priced(prices)
        extra = priced - priced.min(axis=1, keepdims=True)  # what a choice loses against the bound
        slack = np.inf if first is None else self.value(first) - self.bound(prices)
        slack -= 1e-12 * float(np.abs(np.where(self.there, self.values, 0.0)).max(axis=1).sum())
        order = np.argsort(-self.least.sum(axis=1) if len(self.limits) else self.rows, kind="stable")
        rest = self.least[order][::-1].cumsum(axis=0)[::-1]
        rest = np.vstack([rest, np.zeros((1, len(self.limits)))])
        load, lost, value = np.zeros((1, len(self.limits))), np.zeros(1), np.zeros(1)
        exact, trail = True, []
        for at, item in enumerate(order):
            choices = np.flatnonzero(self.there[item])
            parent = np.repeat(np.arange(len(lost)), len(choices))
            choice = np.tile(choices, len(lost))
            load = load[parent] + self.weights[item, choice]
            lost, value = lost[parent] + extra[item, choice], value[parent] + self.values[item, choice]
            fits = (load + rest[at + 1] <= self.limits).all(axis=1) & (lost < slack)
            keep = np.flatnonzero(fits)
            keep = keep[_undominated(load[keep], value[keep])]
            if len(keep) > _MOST_STATES:
                exact = False
                keep = np.sort(keep[np.argsort(lost[keep], kind="stable")[:_MOST_STATES]])
            load, lost, value = load[keep], lost[keep], value[keep]
            trail.append((parent[keep], choice[keep]))
            if not len(keep):
                return first, exact
        state = int(value.argmin())
        picks = np.zeros(len(self.rows), np.int64)
        for item, (parent, choice) in zip(order[::-1], trail[::-1], strict=True):
            picks[item], state = choice[state], parent[state]
        if first is not None and self.value(picks) >= self.value(first):
            return first, exact
        return picks, exact


def _undominated(load: Floats, value: Floats) -> Ints:
    """Which partial solutions to keep: with one limit none for which another has no more load and no more
    value; with several, one for each load."""
    keys = (value, *load.T[::-1])
    order = np.lexsort(keys)
    if load.shape[1] == 0:
        return order[:1]
    sorted_value = value[order]
    if load.shape[1] == 1:
        before = np.minimum.accumulate(np.concatenate([[np.inf], sorted_value[:-1]]))
        return np.sort(order[sorted_value < before])
    same = np.zeros(len(order), bool)
    same[1:] = (load[order][1:] == load[order][:-1]).all(axis=1)
    return np.sort(order[~same])
