"""The backward pass of a calibration: second moments weighted by what an error at each output costs.

For a group g of a projection's outputs the moment is H_g = E[s x xᵀ] with s the mean over the group of
(∂loss/∂output)² at that token, and each row has the weight E[(∂loss/∂output)²] relative to its group
(GuidedQuant, arXiv 2505.07004); the diagonal of H_g times that weight is nearly the Fisher information of a
weight. The pass runs over the parts of the model from the last to the first. The hidden state before each of
them was left by the forward pass, the gradient behind it lies on the disk as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketlm._core import SecondMoment
from pocketlm.errors import WeightError
from pocketlm.graph import Graph, Linear
from pocketlm.loading import LoadedModel
from pocketlm.loading.check import stored_name
from pocketlm.loading.files import storage_errors
from pocketlm.palettize.hidden import GRADIENT, Hidden
from pocketlm.palettize.progress import Progress
from pocketlm.palettize.segments import Segment

GROUPS = 2  # of a projection's rows; more gain little, and each takes 4 inputs² bytes
SEED = 0  # of the labels
_TILE = 16
_TOKENS = 1024  # of a batch
_NUMBERS = 1 << 24  # of the largest result of a batch


def joined(parts: list[Segment]) -> list[tuple[int, Segment]]:
    """The parts of the backward pass, each with the border before it: two parts of the forward pass, a
    layer, so that half as many hidden states are to be kept."""
    return [
        (at, Segment(parts[at].graph, parts[at].start, parts[min(at + 1, len(parts) - 1)].stop))
        for at in range(0, len(parts), 2)
    ]


def row_groups(rows: int, count: int) -> list[tuple[int, int]]:
    """At most ``count`` groups of rows, cut at tiles."""
    tiles = -(-rows // _TILE)
    count = min(count, tiles)
    cuts = [i * tiles // count * _TILE for i in range(count)] + [rows]
    return list(itertools.pairwise(cuts))


def group_file(index: int, group: int) -> str:
    """The file with the moment of a group of the outputs of the graph's operation ``index``."""
    return f"guided-{index:05d}-{group}.npy"


def rows_file(index: int) -> str:
    """The file with mean squares of the gradients at the outputs of the graph's operation ``index``."""
    return f"rows-{index:05d}.npy"


def group_bytes(graph: Graph, count: int) -> int:
    """Of all files that the backward pass leaves."""
    shapes = [op.weight.shape for op in graph.ops if isinstance(op, Linear)]
    return sum(4 * rows + len(row_groups(rows, count)) * 4 * inputs**2 for rows, inputs in shapes)


def run_back(
    model: LoadedModel,
    border: int,
    segment: Segment,
    next_border: int,
    windows: NDArray[np.uint32],
    partial: Path,
    groups: int,
    threads: int | None,
    bar: Progress,
) -> None:
    """One part of the backward pass: its moments, and the gradient before it.

    Raises:
        WeightError: a gradient is not finite.
        StorageError: a file cannot be read or written.
    """
    from pocketlm.palettize.fisher import Backward, products

    ops = products(segment)
    bounds = {index: row_groups(op.width, groups) for index, op in ops.items()}
    sums = {index: [SecondMoment(op.weight.shape[1]) for _ in bounds[index]] for index, op in ops.items()}
    rows = {index: np.zeros(op.width, np.float64) for index, op in ops.items()}
    graph, tokens = model.graph, windows.size
    last = segment.stop == len(graph.ops)
    state = Hidden.open(partial, border, segment, tokens) if border else None
    behind = None
    if not last:
        behind = Hidden.open(
            partial, next_border, Segment(graph, segment.stop, segment.stop + 1), tokens, GRADIENT
        )
    before = Hidden.create(partial, border, tokens, state.width, GRADIENT) if state else None
    uniform = np.random.default_rng(SEED).random(tokens, np.float32)
    back = Backward(model, segment, bounds)
    for first, shape in _batches(windows, back.by_token, back.widest):
        count = shape[0] * shape[1]
        at = slice(first, first + count)
        read = windows.reshape(-1)[at].reshape(shape) if state is None else state.rows(first, count)
        given = uniform[at].reshape(shape) if behind is None else behind.rows(first, count)
        found, slope = back(
            read.reshape(*shape, *read.shape[1:]) if state else read,
            given.reshape(*shape, *given.shape[1:]) if behind else given,
        )
        for index, one in found.items():
            if not (np.isfinite(one.rows).all() and np.isfinite(one.weights).all()):
                name = graph.ops[index].name
                raise WeightError(f"{model.path}: the gradient at {name} gives numbers that are not finite")
            rows[index] += one.rows
            for total, weights in zip(sums[index], one.weights, strict=True):
                total.add(one.x, weights, threads=threads)
        if before is not None and slope is not None:
            before.append(slope.reshape(count, -1))
        bar.add(count)
    for index, totals in sums.items():
        _save(partial / rows_file(index), (rows[index] / tokens).astype(np.float32))
        for group, total in enumerate(totals):
            _save(partial / group_file(index, group), total.finish(1 / tokens))
    for op in segment.ops:
        for weight in op.weights():
            model.store.release(stored_name(model.store, weight))


def _batches(
    windows: NDArray[np.uint32], by_token: bool, widest: int
) -> Iterator[tuple[int, tuple[int, int]]]:
    """First token and shape [batch, tokens] of each batch: whole windows, unless tokens may go alone."""
    count, length = windows.shape
    if by_token:
        size = max(16, min(_TOKENS, _NUMBERS // widest))
        for first in range(0, windows.size, size):
            yield first, (1, min(size, windows.size - first))
    else:
        some = max(1, _TOKENS // length)
        for window in range(0, count, some):
            yield window * length, (min(some, count - window), length)


def _save(path: Path, array: NDArray[np.float32]) -> None:
    with storage_errors(path), path.open("wb") as file:
        np.save(file, array)
