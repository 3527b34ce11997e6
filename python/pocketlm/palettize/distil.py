"""Distillation: what palettes point to, norms and the adapter learn the source model's predictions.

The loss is KL(source ‖ model) of the next token's distribution, a mean over all positions, at temperature 1.
Adam (arXiv 1412.6980, by optax) with a learning rate for each kind of parameter, which rises over the first
steps and then falls to 0 along a cosine. The order of the windows follows from the seed, and the state is
saved from time to time: a run that was interrupted goes on and ends in the same numbers.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from pocketlm.errors import AdapterError
from pocketlm.graph import Graph
from pocketlm.interpret import jax as interpreter
from pocketlm.palettize.state import load_state, save_state
from pocketlm.palettize.student import Student, Tree, reader

Windows = NDArray[np.uint32]
SAVE_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        tokens: of a batch.
        rates: peak learning rates: of the adapter's matrices, codebook entries (in steps of their grid), log
            scales, and norms.
        warmup: share of the steps over which rates rise.
        seed: of the order of the windows.
        int8: products read activations rounded as the engine rounds them.
    """

    tokens: int = 2048
    rates: tuple[tuple[str, float], ...] = (
        ("adapter", 3e-3),
        ("codebook", 1e-1),
        ("scale", 3e-3),
        ("norm", 3e-3),
    )
    warmup: float = 0.05
    seed: int = 0
    int8: bool = True


def kind(name: str, adapter: set[str]) -> str:
    """The group of rates that a parameter belongs to."""
    return name.partition(":")[0] if ":" in name else "adapter" if name in adapter else "norm"


def batches(windows: Windows, size: int, seed: int) -> Iterator[Windows]:
    """Batches for ever; each pass over the windows has an order of its own."""
    at = 0
    while True:
        chosen: list[int] = []
        for index in range(at, at + size):
            epoch, place = divmod(index, len(windows))
            if place == 0 or not chosen:
                order = np.random.default_rng([seed, epoch]).permutation(len(windows))
            chosen.append(order[place])
        at += size
        yield windows[chosen]


def divergence(teacher: jax.Array, student: jax.Array) -> jax.Array:
    """Mean over positions of KL(softmax(teacher) ‖ softmax(student)), in nats."""
    target = jax.nn.log_softmax(teacher, axis=-1)
    found = jax.nn.log_softmax(student, axis=-1)
    return (jnp.exp(target) * (target - found)).sum(-1).mean()


def rule(settings: Settings, steps: int, trainable: Tree, adapter: frozenset[str]) -> Any:
    """Adam with a rate for each kind of parameter; ``adapter`` names the matrices of an adapter."""

    def schedule(peak: float) -> Any:
        if steps == 1:  # which would be the first of the rise, at 0
            return optax.constant_schedule(peak)
        return optax.warmup_cosine_decay_schedule(
            0.0, peak, max(1, round(settings.warmup * steps)), max(2, steps), 0.0
        )

    rules = {group: optax.adam(schedule(peak), b2=0.99) for group, peak in settings.rates}
    return optax.multi_transform(rules, {name: kind(name, set(adapter)) for name in trainable})


def judges(windows: int, size: int) -> NDArray[np.intp]:
    """Which ``size`` of so many windows judge, spread evenly over them, some more than once where they are
    fewer: the same before and behind the training, and a batch like those that trained."""
    return np.arange(size) * windows // size


@dataclasses.dataclass(frozen=True)
class Distilled:
    """What came of it.

    Attributes:
        trainable: what the student has learned; as it was, where that made it worse.
        losses: of each step [steps].
        judged: the loss on one batch before and behind the training.
    """

    trainable: Tree
    losses: NDArray[np.float32]
    judged: tuple[float, float]

    @property
    def worse(self) -> bool:
        """Whether the training made it worse, so that nothing is left of it."""
        return self.judged[1] > self.judged[0]


def distil(
    graph: Graph,
    source: Tree,
    student: Student,
    windows: Windows,
    steps: int,
    settings: Settings,
    state: Path,
    told: Callable[[int, float], None] | None = None,
    adapter: frozenset[str] = frozenset(),
) -> Distilled:
    """Trains the student for ``steps`` steps.

    ``graph`` and ``source`` are the model that it came from; ``adapter`` names the matrices of the student's
    adapter. ``windows`` are token ids [windows, length]. ``state`` is the file of
    unfinished work. ``told`` is called with the number of steps done and the last loss.

    Raises:
        AdapterError: the loss is not finite.
        StorageError: the state cannot be written.
    """
    learning = rule(settings, steps, student.trainable, adapter)

    def loss(trainable: Tree, fixed: Tree, teacher: Tree, ids: jax.Array) -> jax.Array:
        wanted = jax.lax.stop_gradient(interpreter.logits(graph, teacher, ids))
        read = reader(student.graph) if settings.int8 else None
        return divergence(
            wanted, interpreter.logits(student.graph, student.params(trainable, fixed), ids, read)
        )

    @jax.jit
    def step(trainable: Tree, moments: Any, fixed: Tree, teacher: Tree, ids: jax.Array) -> Any:
        value, slopes = jax.value_and_grad(loss)(trainable, fixed, teacher, ids)
        changes, moments = learning.update(slopes, moments, trainable)
        return value, optax.apply_updates(trainable, changes), moments

    trainable, moments = student.trainable, learning.init(student.trainable)
    losses = np.zeros(steps, np.float32)
    trainable, moments, losses, done = _load(state, (trainable, moments, losses))
    if told is not None and done:
        told(done, float(losses[done - 1]))
    size = max(1, settings.tokens // windows.shape[1])
    saved = time.monotonic()
    for index, ids in zip(range(steps), batches(windows, size, settings.seed), strict=False):
        if index < done:
            continue
        value, trainable, moments = step(trainable, moments, student.fixed, source, jnp.asarray(ids))
        losses[index] = float(value)
        if not np.isfinite(losses[index]):
            raise AdapterError(f"recover_train: the loss is {losses[index]} at step {index + 1} of {steps}")
        if told is not None:
            told(index + 1, float(losses[index]))
        if index + 1 == steps or time.monotonic() - saved > SAVE_SECONDS:
            _save(state, (trainable, moments, losses), index + 1)
            saved = time.monotonic()
    some = jnp.asarray(windows[judges(len(windows), size)])
    # A step's loss is there already, compiled; its change goes nowhere.
    before, behind = (
        float(step(one, moments, student.fixed, source, some)[0]) for one in (student.trainable, trainable)
    )
    found = Distilled(trainable, losses, (before, behind))
    return dataclasses.replace(found, trainable=student.trainable) if found.worse else found


def _save(path: Path, values: Any, done: int) -> None:
    arrays = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(values))}
    save_state(path, {"done": np.asarray(done), **arrays})


def _load(path: Path, values: Any) -> Any:
    """What :func:`_save` wrote; ``values`` and no steps where that is not all there in their shapes."""
    leaves, shape = jax.tree.flatten(values)
    saved = load_state(path)
    found = [saved.get(str(i)) for i in range(len(leaves))]
    done = saved.get("done")
    same = all(
        one is not None and one.shape == np.shape(leaf) and one.dtype == leaf.dtype
        for one, leaf in zip(found, leaves, strict=True)
    )
    if not same or done is None or done.shape or not 0 <= done <= len(values[-1]):
        return *values, 0
    trainable, moments, losses = jax.tree.unflatten(shape, found)
    return *jax.tree.map(jnp.asarray, (trainable, moments)), losses, int(done)
