"""A model with some of its layers left out, to measure the rest of them in less time and memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from pocketlm.graph import Attention, Graph, Linear, Op
from pocketlm.profile.names import place

_INPUTS = ("x", "a", "b", "q", "k", "v", "gate", "up")


def shorter(graph: Graph, most: int) -> Graph:
    """The graph with so many of its layers, evenly spread, that their products have about ``most`` weights:
    the first and the last at least. The whole graph if it has no more, or if a layer cannot be left out since
    something reads more of it than its result."""
    layers = _layers(graph)
    sizes = dict.fromkeys(layers, 0)
    for op in graph.linears():
        layer = place(op.name)[0]
        if layer is not None:
            sizes[layer] += op.weight.shape[0] * op.weight.shape[1]
    count = max(2, round(len(layers) * most / max(1, sum(sizes.values()))))
    if count >= len(layers):
        return graph
    order = sorted(layers)
    kept = {order[round(at * (len(order) - 1) / (count - 1))] for at in range(count)}
    return without(graph, set(order) - kept) or graph


def without(graph: Graph, left_out: Iterable[int]) -> Graph | None:
    """The graph without some layers: who reads the result of one reads what it would have read. ``None`` if
    that cannot be said."""
    layers = _layers(graph)
    instead: dict[int, int] = {}  # of a value of a layer left out, what stands in its place
    for layer in sorted(left_out):
        first, last = layers[layer][0], layers[layer][-1]
        if layers[layer] != [*range(first, last + 1)]:
            return None
        outside = {at for op in graph.ops[first : last + 1] for at in op.inputs() if at < first}
        if outside != {first - 1} or graph.ops[first - 1].width != graph.ops[last].width:
            return None
        instead[last] = first - 1
    gone = {at for layer in left_out for at in layers[layer]}
    moved: dict[int, int] = {}
    caches: dict[int, int] = {}
    ops: list[Op] = []

    def now(at: int) -> int | None:
        while at in instead:
            at = instead[at]
        return moved.get(at)

    for at, op in enumerate(graph.ops):
        if at in gone:
            continue
        inputs = {key: now(old) for key in _INPUTS if (old := getattr(op, key, None)) is not None}
        if None in inputs.values():
            return None
        changes: dict[str, Any] = dict(inputs)
        if isinstance(op, Attention):
            if op.k is None and op.cache not in caches:
                return None
            changes["cache"] = caches.setdefault(op.cache, len(caches))
        moved[at] = len(ops)
        ops.append(dataclasses.replace(op, **changes))
    return dataclasses.replace(graph, ops=tuple(ops))


def _layers(graph: Graph) -> dict[int, list[int]]:
    """Indices of the operations of each layer."""
    found: dict[int, list[int]] = {}
    for at, op in enumerate(graph.ops):
        layer = place(op.name)[0]
        if layer is not None:
            found.setdefault(layer, []).append(at)
    return found


def linear_sites(graph: Graph) -> dict[str, list[Linear]]:
    """Products by site, which the layers have in common."""
    found: dict[str, list[Linear]] = {}
    for op in graph.linears():
        found.setdefault(place(op.name)[1], []).append(op)
    return found
