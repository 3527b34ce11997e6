"""Which projection gets how many bits, so that a given average costs least.

A knapsack with one choice for each tensor, solved on the convex hull of each tensor's (bits, loss) points:
steps of steepest descent of loss per bit are taken while they fit. That is the optimum of the Lagrangian at
its multiplier; what is left of the budget is filled with the next steps that fit.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

from pocketlm.kinds import BITS
from pocketlm.palettize.recipe import Candidate

# Sites whose errors reach the residual stream unnormalised cost more than their own error tells (the priors
# of llama.cpp's mixes and of the published bit allocations agree on these).
_SENSITIVE = re.compile(r"\.(ffn\.down|attn\.v|attn\.qkv|attn\.out)$")
_SENSITIVE_FACTOR = 1.5
_EDGE_FACTOR = 2.0  # the first and the last block


@dataclasses.dataclass(frozen=True)
class _Step:
    slope: float  # loss saved per bit
    order: int
    tensor: str
    kind: str
    bits: int


def prior(candidate: Candidate, layers: int) -> float:
    """How much the relative error of a projection counts beside others."""
    factor = 1.0
    for site in candidate.sites:
        match = re.match(r"layers\.(\d+)\.", site)
        edge = _EDGE_FACTOR if match and int(match[1]) in (0, layers - 1) else 1.0
        factor = max(factor, edge * (_SENSITIVE_FACTOR if _SENSITIVE.search(site) else 1.0))
    return factor


def allocate(
    tensors: Sequence[Candidate], losses: Mapping[str, Mapping[str, float]], budget_bits: float
) -> dict[str, str]:
    """The kind of each tensor: least total loss with at most ``budget_bits`` bits of codes.

    ``losses[tensor][kind]`` is the loss of a choice. Where even the smallest kinds exceed the budget, those
    are taken.
    """
    chosen, steps = {}, []
    for order, tensor in enumerate(tensors):
        points = _hull(
            [(BITS[kind] * tensor.elements, loss, kind) for kind, loss in losses[tensor.name].items()]
        )
        chosen[tensor.name] = points[0][2]
        budget_bits -= points[0][0]
        for (bits, loss, _), (more, less, kind) in pairwise(points):
            slope = (loss - less) / (more - bits)
            steps.append(_Step(slope, order, tensor.name, kind, more - bits))
    closed = set()
    for step in sorted(steps, key=lambda step: (-step.slope, step.order, step.bits)):
        if step.tensor in closed or step.bits > budget_bits:
            closed.add(step.tensor)  # its later steps build on this one
            continue
        chosen[step.tensor] = step.kind
        budget_bits -= step.bits
    return chosen


def _hull(points: list[tuple[int, float, str]]) -> list[tuple[int, float, str]]:
    """The lower convex hull, by ascending bits and strictly descending loss."""
    hull: list[tuple[int, float, str]] = []
    for point in sorted(points):
        if hull and point[1] >= hull[-1][1]:
            continue
        while len(hull) > 1:
            (b0, l0, _), (b1, l1, _) = hull[-2:]
            # The middle point lies above the line from the one before it to the new one.
            if (l0 - l1) * (point[0] - b1) > (l1 - point[1]) * (b1 - b0):
                break
            hull.pop()
        hull.append(point)
    return hull
