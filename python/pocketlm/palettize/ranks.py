"""Ranks of low-rank corrections, so that a given number of bytes lowers the error most."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

STEP = 16  # ranks are multiples of it: a tile of int8, a vector of floats
SPREAD = 4  # most of a site, as a multiple of the average


@dataclasses.dataclass(frozen=True)
class Site:
    """A weight to be corrected: ``gains[i]`` is what direction i lowers the loss by, descending."""

    name: str
    gains: NDArray[np.float64]
    bytes: Callable[[int], int]

    def choices(self) -> list[int]:
        """Ranks that it may have."""
        most = len(self.gains)
        return sorted({0, most, *range(STEP, most, STEP)})


def allocate_ranks(sites: Sequence[Site], budget: int) -> dict[str, int]:
    """The rank of each site: greatest gain with at most ``budget`` bytes.

    Steps of most gain per byte are taken while they fit, along the upper convex hull of each site's (bytes,
    gain): the optimum of the Lagrangian, and what is left goes to the next steps that fit.
    """
    chosen = {site.name: 0 for site in sites}
    steps = []
    for order, site in enumerate(sites):
        reached = np.concatenate([[0.0], np.cumsum(site.gains)])
        points = _hull(
            [(site.bytes(rank) if rank else 0, float(reached[rank]), rank) for rank in site.choices()]
        )
        for (less, low, _), (more, high, rank) in itertools.pairwise(points):
            steps.append(((low - high) / (more - less), order, rank, site.name, more - less))
    closed = set()
    for _, _, rank, name, size in sorted(steps):
        if name in closed or size > budget:
            closed.add(name)  # its later steps build on this one
            continue
        chosen[name] = rank
        budget -= size
    return chosen


def _hull(points: list[tuple[int, float, int]]) -> list[tuple[int, float, int]]:
    """The upper convex hull, by ascending bytes and strictly ascending gain."""
    hull: list[tuple[int, float, int]] = []
    for point in sorted(points, key=lambda point: (point[0], -point[1])):
        if hull and point[1] <= hull[-1][1]:
            continue
        while len(hull) > 1:
            (b0, g0, _), (b1, g1, _) = hull[-2:]
            if (g1 - g0) * (point[0] - b1) > (point[1] - g1) * (b1 - b0):
                break
            hull.pop()
        hull.append(point)
    return hull
