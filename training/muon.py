"""The optimiser: Muon for matrices, Adam for the embedding and the gains.

Muon (Jordan, 2024) replaces the momentum of a matrix by the nearest matrix with orthonormal rows or columns,
found by Newton-Schulz iteration. Fused projections (query | key | value, gate | up) are orthogonalised part
by part; parts of one shape go through the iteration as one batch.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from pocketlm.graph import Embed, Graph, Linear, Slice

Tree = dict[str, jax.Array]

# Quintic coefficients (a, b, c) of X <- aX + (bA + cA^2)X with A = XX'. They push singular values towards 1
# within five steps, to roughly 0.7 to 1.2; exactness buys nothing here.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
ADAM_EPS = 1e-10


@dataclass(frozen=True)
class Part:
    """Rows ``start`` to ``stop`` of a matrix: what one product of a fused projection computes."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Hyper:
    """Peak learning rates and decays. ``decay`` is decoupled and multiplied by the learning rate."""

    matrix_rate: float = 0.02
    adam_rate: float = 4e-3
    momentum: float = 0.95
    beta1: float = 0.9
    beta2: float = 0.95
    decay: float = 0.1


def matrix_parts(graph: Graph) -> list[Part]:
    """The parts of the matrices that Muon trains: all but those that share the embedding's tensor."""
    embeddings = {op.weight.name for op in graph.ops if isinstance(op, Embed)}
    parts = []
    for index, op in enumerate(graph.ops):
        if not isinstance(op, Linear) or op.weight.name in embeddings:
            continue
        starts = sorted(
            other.start for other in graph.ops if isinstance(other, Slice) and other.x == index
        ) or [0]
        stops = [*starts[1:], op.width]
        parts += [Part(op.weight.name, *ends) for ends in zip(starts, stops, strict=True)]
    return parts


def init_state(graph: Graph, params: Tree) -> dict[str, Tree]:
    """Zero moments: ``momentum`` of the matrices, ``mean`` and ``square`` of the rest."""
    matrices = {part.name for part in matrix_parts(graph)}
    zeros = {name: jnp.zeros_like(value) for name, value in params.items()}
    rest = {name: value for name, value in zeros.items() if name not in matrices}
    return {
        "momentum": {name: value for name, value in zeros.items() if name in matrices},
        "mean": rest,
        "square": {name: jnp.zeros_like(value) for name, value in rest.items()},
    }


def orthogonalise(x: jax.Array) -> jax.Array:
    """Matrices [batch, rows, columns] with rows <= columns, their singular values brought near 1."""
    a, b, c = COEFFICIENTS
    x = x / (jnp.sqrt(jnp.square(x).sum((-2, -1), keepdims=True)) + 1e-7)
    for _ in range(ITERATIONS):
        gram = jnp.einsum("bik,bjk->bij", x, x)
        x = a * x + jnp.einsum("bij,bjk->bik", b * gram + c * jnp.einsum("bik,bkj->bij", gram, gram), x)
    return x


def directions(parts: list[Part], momentum: Tree) -> dict[Part, jax.Array]:
    """The orthogonalised momentum of each part, scaled by sqrt(max(1, rows / columns))."""
    groups = defaultdict(list)
    for part in parts:
        rows, columns = part.stop - part.start, momentum[part.name].shape[1]
        groups[min(rows, columns), max(rows, columns)].append(part)
    result = {}
    for (rows, _), members in groups.items():
        pieces = [momentum[part.name][part.start : part.stop] for part in members]
        flipped = [piece.shape[0] != rows for piece in pieces]
        stacked = jnp.stack([piece.T if flip else piece for piece, flip in zip(pieces, flipped, strict=True)])
        for part, flip, value in zip(members, flipped, orthogonalise(stacked), strict=True):
            value = value.T if flip else value
            result[part] = value * max(1.0, value.shape[0] / value.shape[1]) ** 0.5
    return result


def owners(graph: Graph, workers: int) -> list[list[str]]:
    """Which worker orthogonalises which matrices, about the same amount of arithmetic for each."""
    cost: dict[str, float] = defaultdict(float)
    for part in matrix_parts(graph):
        rows, columns = part.stop - part.start, graph.weights()[part.name].shape[1]
        cost[part.name] += rows * columns * min(rows, columns)
    shares: list[list[str]] = [[] for _ in range(workers)]
    for name in sorted(cost, key=lambda name: -cost[name]):
        min(shares, key=lambda share: sum(cost[other] for other in share)).append(name)
    return shares


def moves(graph: Graph, hyper: Hyper, names: list[str], momentum: Tree, grads: Tree) -> tuple[Tree, Tree]:
    """The new momentum of all matrices, and the directions in which those called ``names`` are to move."""
    kept = hyper.momentum
    momentum = {name: kept * value + (1 - kept) * grads[name] for name, value in momentum.items()}
    ahead = {name: kept * momentum[name] + (1 - kept) * grads[name] for name in names}  # Nesterov's
    parts = [part for part in matrix_parts(graph) if part.name in ahead]
    moved = directions(parts, ahead)
    return momentum, {
        name: jnp.concatenate([moved[part] for part in parts if part.name == name]) for name in names
    }


def update(
    hyper: Hyper,
    params: Tree,
    adam: dict[str, Tree],
    moved: Tree,
    grads: Tree,
    step: jax.Array,
    factor: jax.Array,
) -> tuple[Tree, dict[str, Tree]]:
    """The new weights and Adam's new moments.

    ``moved`` holds the directions of all matrices, ``adam`` the moments ``mean`` and ``square`` of the rest.
    ``step`` counts from 0; ``factor`` scales both learning rates (the schedule).
    """
    rate = hyper.matrix_rate * factor
    new = {name: params[name] * (1 - rate * hyper.decay) - rate * value for name, value in moved.items()}
    rate = hyper.adam_rate * factor
    count = (step + 1).astype(jnp.float32)
    mean, square = {}, {}
    for name, old in adam["mean"].items():
        mean[name] = hyper.beta1 * old + (1 - hyper.beta1) * grads[name]
        square[name] = hyper.beta2 * adam["square"][name] + (1 - hyper.beta2) * jnp.square(grads[name])
        size = jnp.sqrt(square[name] / (1 - hyper.beta2**count)) + ADAM_EPS
        new[name] = params[name] - rate * mean[name] / (1 - hyper.beta1**count) / size
    return {name: new[name] for name in params}, {"mean": mean, "square": square}
