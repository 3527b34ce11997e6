"""Training block by block: each layer learns to give what the source's layer gives, from what the palettized
layers before it give.

The loss is the squared error of the hidden state behind the layer relative to the square of the source's, a
mean over tokens (block-wise training as in EfficientQAT, arXiv 2407.11062, and AQLM, arXiv 2401.06118; codes
stay as in all of recovery). One layer of either model is in memory at a time, and the hidden states of all
tokens lie on the disk, so that models can learn which are too large to be trained as a whole. What a finished
layer has learned is kept; an interrupted run repeats at most one layer and ends in the same numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from pocketlm._core import WeightStore
from pocketlm.errors import AdapterError
from pocketlm.graph import Graph
from pocketlm.interpret import jax as interpreter
from pocketlm.loading import LoadedModel
from pocketlm.loading.check import stored_name
from pocketlm.loading.files import storage_errors
from pocketlm.palettize.distil import Settings, Windows, batches, judges, rule
from pocketlm.palettize.guided import joined
from pocketlm.palettize.hidden import Hidden, path_of
from pocketlm.palettize.segments import HIDDEN, Segment, segments
from pocketlm.palettize.state import load_state, save_state
from pocketlm.palettize.student import Parts, Student, Tree, reader

_STATE = "blocks.npz"
_SOURCE, _STUDENT = "source", "student"
_DONE = "done"


@dataclasses.dataclass(frozen=True)
class Task:
    """What is to learn: the source, the graph of the model in the making with its adapter, its weights, scale
    and codebook of each palettized projection, and the adapter's matrices."""

    model: LoadedModel
    graph: Graph
    store: WeightStore
    parts: Mapping[str, Parts]
    matrices: Mapping[str, NDArray[np.float32]]

    def blocks(self) -> list[tuple[Segment, Segment]]:
        """Layers of the source and of the model in the making, without the part that has the head."""
        found = zip(joined(segments(self.model.graph)), joined(segments(self.graph)), strict=True)
        return [(source, own) for (_, source), (_, own) in found][:-1]

    def student(self, segment: Segment) -> Student:
        """One layer, to be trained."""
        graph = segment.runnable(1)
        names = {weight.name for weight in graph.weights().values()}
        stored = {stored_name(self.store, w) for w in graph.weights().values() if w.name in self.store}
        parts = {name: value for name, value in self.parts.items() if name in stored}
        return Student(
            graph, self.store, parts, {name: m for name, m in self.matrices.items() if name in names}
        )

    def source(self, segment: Segment) -> Tree:
        """One layer of the source."""
        weights = {weight.name: weight for op in segment.ops for weight in op.weights()}
        store = self.model.store
        return {name: jnp.asarray(store.dense(stored_name(store, w))) for name, w in weights.items()}


@dataclasses.dataclass(frozen=True)
class States:
    """Hidden states of both models at the borders of blocks, for all ``windows`` [windows, length], in a
    ``directory``; ``size`` windows are run at a time."""

    directory: Path
    windows: Windows
    size: int

    def read(self, border: int, what: str, width: int) -> Callable[[Iterable[int]], jax.Array]:
        """Gives those of some windows [some, length, width]; before the first block their token ids."""
        length = self.windows.shape[1]
        if not border:
            return lambda chosen: jnp.asarray(self.windows[list(chosen)])
        state = Hidden.at(self.directory, border, self.windows.size, width, what)
        return lambda chosen: jnp.asarray(np.stack([state.rows(int(i) * length, length) for i in chosen]))

    def pass_on(
        self, border: int, what: str, widths: tuple[int, int], run: Callable[[jax.Array], jax.Array]
    ) -> None:
        """Writes those behind a block, which ``run`` computes from those at the ``border`` before it.
        ``widths`` are those of the two."""
        inputs = self.read(border, what, widths[0])
        made = Hidden.create(self.directory, border + 1, self.windows.size, widths[1], what)
        count = len(self.windows)
        size = min(self.size, count)
        for first in range(0, count, size):
            # The last ones go with some that were there before, since another number would be compiled anew.
            begin = min(first, count - size)
            made.append(np.asarray(run(inputs(range(begin, begin + size))))[first - begin :])


@dataclasses.dataclass(frozen=True)
class Blocks:
    """What blocks learned, by the names of :class:`Student`'s ``trainable``, how many they are, and how many
    of them stayed as they were, because training made them worse."""

    learned: Tree
    count: int
    worse: int


def train_blocks(
    task: Task,
    windows: Windows,
    steps: int,
    settings: Settings,
    directory: Path,
    told: Callable[[int, float], None] | None = None,
) -> Blocks:
    """Trains each block for ``steps`` steps on ``windows`` [windows, length].

    ``directory`` has the unfinished work; ``told`` is called with the number of steps done, over all blocks,
    and the last loss.

    Raises:
        AdapterError: a loss is not finite.
        StorageError: the state cannot be written.
    """
    blocks = task.blocks()
    states = States(directory, windows, max(1, settings.tokens // windows.shape[1]))
    learned, worse, done = _load(states, blocks)
    for index in range(done, len(blocks)):
        source, own = blocks[index]
        widths = source.graph.ops[source.start - 1].width if source.start else 0, source.ops[-1].width
        _teach(task, source, states, index, widths)

        def one(step: int, loss: float, index: int = index) -> None:
            if not np.isfinite(loss):
                raise AdapterError(
                    f"recover_train: the loss of block {index + 1} is {loss} at step {step} of {steps}"
                )
            if told is not None:
                told(index * steps + step, loss)

        trained, better = _learn(task, own, states, index, widths, steps, settings, one)
        worse += not better
        learned |= {name: np.asarray(value) for name, value in trained.items()}
        _save(directory, learned, worse, index + 1)
        with storage_errors(directory):
            for what in (_SOURCE, _STUDENT):
                path_of(directory, index, what).unlink(missing_ok=True)
    return Blocks({name: jnp.asarray(value) for name, value in learned.items()}, len(blocks), worse)


def scratch(blocks: int) -> list[str]:
    """Names of all that may lie in the directory."""
    borders = range(blocks + 1)
    states = [path_of(Path(), border, what).name for what in (_SOURCE, _STUDENT) for border in borders]
    return [_STATE, f"{_STATE}.new", *states]


def _teach(task: Task, segment: Segment, states: States, index: int, widths: tuple[int, int]) -> None:
    """Runs a block of the source: what the other is to learn."""
    graph = segment.runnable(1)
    params = task.source(segment)
    run = jax.jit(lambda params, given: _forward(graph, params, given))
    states.pass_on(index, _SOURCE, widths, lambda given: run(params, given))
    for op in segment.ops:
        for weight in op.weights():
            task.model.store.release(stored_name(task.model.store, weight))


def _learn(
    task: Task,
    segment: Segment,
    states: States,
    index: int,
    widths: tuple[int, int],
    steps: int,
    settings: Settings,
    told: Callable[[int, float], None],
) -> tuple[Tree, bool]:
    """Trains a block, and runs it: what it learned, and whether it is not worse for that. Else it stays as it
    was."""
    student = task.student(segment)
    read = reader(task.graph) if settings.int8 else None

    def run(trainable: Tree, fixed: Tree, given: jax.Array) -> jax.Array:
        return _forward(student.graph, student.params(trainable, fixed), given, read)

    def loss(trainable: Tree, fixed: Tree, given: jax.Array, wanted: jax.Array) -> jax.Array:
        return relative_error(run(trainable, fixed, given), wanted)

    learning = rule(settings, steps, student.trainable, frozenset(task.matrices))

    @jax.jit
    def step(trainable: Tree, moments: Any, fixed: Tree, given: jax.Array, wanted: jax.Array) -> Any:
        value, slopes = jax.value_and_grad(loss)(trainable, fixed, given, wanted)
        changes, moments = learning.update(slopes, moments, trainable)
        return value, optax.apply_updates(trainable, changes), moments

    trainable, moments = student.trainable, learning.init(student.trainable)
    inputs = states.read(index, _STUDENT, widths[0])
    targets = states.read(index + 1, _SOURCE, widths[1])
    order = batches(np.arange(len(states.windows), dtype=np.uint32), states.size, settings.seed)
    for number, chosen in zip(range(steps), order, strict=False):
        given, wanted = inputs(chosen), targets(chosen)
        value, trainable, moments = step(trainable, moments, student.fixed, given, wanted)
        told(number + 1, float(value))
    some = judges(len(states.windows), states.size)
    given, wanted = inputs(some), targets(some)
    # A step's loss is there already, compiled; its change goes nowhere.
    before, behind = (
        float(step(one, moments, student.fixed, given, wanted)[0]) for one in (student.trainable, trainable)
    )
    better = not behind > before
    if not better:
        trainable = student.trainable
    forward = jax.jit(run)
    states.pass_on(index, _STUDENT, widths, lambda given: forward(trainable, student.fixed, given))
    return trainable, better


def relative_error(found: jax.Array, wanted: jax.Array) -> jax.Array:
    """Mean over tokens of |found - wanted|² / |wanted|²: a token of large numbers counts as any other."""
    squares = jnp.square(wanted).sum(-1)
    return (jnp.square(found - wanted).sum(-1) / jnp.maximum(squares, 1e-12)).mean()


def _forward(graph: Graph, params: Tree, given: jax.Array, read: interpreter.Read | None = None) -> jax.Array:
    """A segment's result [batch, tokens, width] from token ids [batch, tokens] or the hidden state before."""
    if given.ndim == 2:
        return interpreter.run(graph.ops, params, given, read)
    batch, length, width = given.shape
    rows = jnp.arange(batch * length).reshape(batch, length)
    return interpreter.run(graph.ops, params | {HIDDEN: given.reshape(-1, width)}, rows, read)


def _save(directory: Path, learned: Mapping[str, Any], worse: int, done: int) -> None:
    save_state(directory / _STATE, {_DONE: np.asarray([done, worse]), **learned})


def _load(states: States, blocks: list[tuple[Segment, Segment]]) -> tuple[dict[str, Any], int, int]:
    """What blocks that are done have learned, how many of them stayed as they were, and how many they are."""
    directory = states.directory
    learned: dict[str, Any] = load_state(directory / _STATE)
    counts = learned.pop(_DONE, None)
    if counts is None or counts.shape != (2,) or not 1 <= counts[0] <= len(blocks):
        return {}, 0, 0
    done, worse = map(int, counts)
    if done == len(blocks):
        return learned, worse, done
    width, tokens = blocks[done - 1][0].ops[-1].width, states.windows.size
    there = all(Hidden.is_there(directory, done, tokens, width, what) for what in (_SOURCE, _STUDENT))
    return (learned, worse, done) if there else ({}, 0, 0)
