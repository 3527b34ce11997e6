"""A palettized model as JAX sees it: codes stay, what they point to can be learned (extra ``train``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from pocketlm._core import WeightStore
from pocketlm.errors import AdapterError
from pocketlm.graph import Graph, Norm
from pocketlm.interpret.jax import Read
from pocketlm.kinds import PALETTE_KINDS
from pocketlm.loading.check import stored_name
from pocketlm.palettize.segments import HIDDEN

TILE = 16
ACT_BLOCK = 256
GROUP = 258  # what the values of a group may sum to, so that 127 times as much fits into 16 bits
Tree = dict[str, Any]
Parts = tuple[NDArray[np.float16], NDArray[np.int8] | None]  # scale and codebook, as they are stored


def pairs(entries: NDArray[np.int16]) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """First and second weights of the pairs of ``p2v``: of inputs k and k + 4, k being 0 to 3 modulo 8."""
    rows, cols = entries.shape
    padded = np.pad(entries, ((0, 0), (0, -cols % 8))).reshape(rows, -1, 2, 4)
    return padded[:, :, 0].reshape(rows, -1), padded[:, :, 1].reshape(rows, -1)


def split_palette(
    dense: NDArray[np.float32], scale: NDArray[np.float16], codebook: NDArray[np.int8], kind: str
) -> NDArray[np.uint8]:
    """The codes of a palettized matrix from its values: [outputs, inputs], or pairs of inputs."""
    wide = scale.astype(np.float32)[:, None]
    entries = np.rint(np.divide(dense, wide, out=np.zeros_like(dense), where=wide != 0)).astype(np.int16)
    keys, books = entries.astype(np.int32), codebook.astype(np.int32)
    if kind == "p2v":
        first, second = pairs(entries)
        keys = first.astype(np.int32) * 256 + second
        firsts = books[:, : books.shape[1] // 2]
        books = firsts * 256 + books[:, books.shape[1] // 2 :]
    codes = np.empty(keys.shape, np.uint8)
    for tile, book in enumerate(books):
        rows = slice(tile * TILE, (tile + 1) * TILE)
        # Padding, and rows of scale 0, may have values that no code stands for.
        codes[rows] = np.minimum(np.searchsorted(book, keys[rows]), len(book) - 1)
        if kind == "p2v":
            # Of a pair whose second weight is padding only the first is known, and only that matters.
            at = np.arange(first.shape[1])
            alone = at // 4 * 8 + at % 4 + 4 >= dense.shape[1]
            found = np.searchsorted(firsts[tile], first[rows][:, alone])
            codes[rows, alone] = np.minimum(found, len(book) - 1)
    return codes


@jax.custom_vjp
def look_up(codes: jax.Array, codebook: jax.Array) -> jax.Array:
    """Entries [outputs, inputs] of codes [outputs, inputs] into codebooks [tiles, entries]."""
    rows = jnp.repeat(codebook, TILE, axis=0)[: codes.shape[0]]
    return jnp.take_along_axis(rows, codes.astype(jnp.int32), axis=1)


def _look_up_forward(codes: jax.Array, codebook: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return look_up(codes, codebook), (codes, codebook)


def _look_up_backward(saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[None, jax.Array]:
    # A masked sum for each entry, in one loop: a scatter would go element by element.
    codes, codebook = saved
    missing = codebook.shape[0] * TILE - codes.shape[0]
    tiles = jnp.pad(g, ((0, missing), (0, 0))).reshape(codebook.shape[0], 1, -1)
    codes = jnp.pad(codes, ((0, missing), (0, 0))).reshape(codebook.shape[0], 1, -1)
    entries = jnp.arange(codebook.shape[1], dtype=codes.dtype)[:, None]
    return None, jnp.where(codes == entries, tiles, 0).sum(-1)


look_up.defvjp(_look_up_forward, _look_up_backward)


def unfold(codes: jax.Array, codebook: jax.Array, kind: str, inputs: int) -> jax.Array:
    """Entries [outputs, inputs] of a matrix of any kind with a codebook."""
    if kind != "p2v":
        return look_up(codes, codebook)
    half = codebook.shape[1] // 2
    found = [
        look_up(codes, part).reshape(len(codes), -1, 4) for part in (codebook[:, :half], codebook[:, half:])
    ]
    return jnp.stack(found, 2).reshape(len(codes), -1)[:, :inputs]


def rounded(x: jax.Array) -> jax.Array:
    """``x`` rounded, with the gradient of ``x`` (the straight-through estimator, arXiv 1308.3432)."""
    return x + jax.lax.stop_gradient(jnp.round(x) - x)


def reader(graph: Graph) -> Read:
    """Activations as the engine reads them: int8 with a scale for each token and block of 256 inputs; for the
    head, which reads them in two terms, as good as they are."""
    head = graph.head()
    return lambda op, x: x if head is not None and op.name == head.name else read_int8(x)


def read_int8(x: jax.Array) -> jax.Array:
    """Activations [..., inputs] rounded to int8 with a scale for each block of 256 inputs; gradients pass."""
    blocks = -(-x.shape[-1] // ACT_BLOCK)
    padded = jnp.pad(x, (*((0, 0),) * (x.ndim - 1), (0, blocks * ACT_BLOCK - x.shape[-1])))
    grouped = padded.reshape(*x.shape[:-1], blocks, ACT_BLOCK)
    step = jax.lax.stop_gradient(jnp.abs(grouped).max(-1, keepdims=True) / 127)
    # Where the products of a group would not fit into 16 bits, steps are larger (docs/numerics.md).
    largest = largest_group(jnp.round(grouped / jnp.where(step > 0, step, 1)))
    step = jnp.where(largest > GROUP, step * ((largest + 2) / 256), step)
    quantized = jnp.round(grouped / jnp.where(step > 0, step, 1)) * step
    close = grouped + jax.lax.stop_gradient(quantized - grouped)
    return close.reshape(padded.shape)[..., : x.shape[-1]]


def largest_group(values: jax.Array) -> jax.Array:
    """Largest sum [..., 1] of the positive values, or of the magnitudes of the negative ones, of four of
    ``values`` [..., 256] whose products may meet in 16 bits: of each eight, 0, 1, 4, 5 or 2, 3, 6, 7."""
    groups = values.reshape(*values.shape[:-1], -1, 2, 2, 2)  # eights, quads, pairs, their elements
    sums = [jnp.maximum(part, 0).sum((-3, -1)) for part in (groups, -groups)]
    largest: jax.Array = jnp.maximum(*sums).max((-2, -1))
    return largest[..., None]


class Student:
    """Trainable and fixed parts of a palettized model.

    ``trainable`` maps ``codebook:NAME`` to entries on the grid [tiles, entries], ``scale:NAME`` to the
    logarithm of what the row scales are multiplied by [outputs], and names of norms and of the adapter's
    matrices to themselves. ``fixed`` holds codes, scales, and tensors that do not change.
    """

    def __init__(
        self,
        graph: Graph,
        store: WeightStore,
        parts: Mapping[str, Parts],
        adapter: Mapping[str, NDArray[np.float32]],
    ) -> None:
        """``graph`` includes the adapter, whose matrices are in ``adapter``; ``parts`` are scale and codebook
        of each palettized projection (``None`` for p8); all other tensors are in ``store``."""
        self.trainable: Tree = {name: jnp.asarray(value, jnp.float32) for name, value in adapter.items()}
        self.fixed: Tree = {}
        self.graph = graph
        self.inputs = {name: store.info(name).shape[1] for name in parts}
        self.kinds = {name: store.info(name).kind for name in parts}
        weights = {w.name: w for w in graph.weights().values() if w.name not in adapter and w.name != HIDDEN}
        # What the interpreter looks up: name, the tensor that holds it, and whether it wants the transpose.
        self._names = [
            (name, stored_name(store, w), w.transposed and stored_name(store, w) in parts)
            for name, w in weights.items()
        ]
        norms = {w.name for op in graph.ops if isinstance(op, Norm) for w in op.weights()}
        for name, stored, _ in self._names:
            dense = store.dense(stored)
            if stored not in parts:
                (self.trainable if name in norms else self.fixed)[stored] = jnp.asarray(dense)
                continue
            scale, codebook = parts[stored]
            wide = scale.astype(np.float32)
            self.fixed[f"scale:{stored}"] = jnp.asarray(wide)
            self.trainable[f"scale:{stored}"] = jnp.zeros(len(wide), jnp.float32)
            if codebook is None:
                safe = np.where(wide, wide, 1)[:, None]
                self.fixed[f"values:{stored}"] = jnp.asarray(np.rint(dense / safe).astype(np.int8))
            else:
                self.fixed[f"codes:{stored}"] = jnp.asarray(
                    split_palette(dense, scale, codebook, self.kinds[stored])
                )
                self.trainable[f"codebook:{stored}"] = jnp.asarray(codebook, jnp.float32)

    def params(self, trainable: Tree, fixed: Tree) -> Tree:
        """All weights by name, as the interpreter wants them; a pure function of its arguments."""
        found = {
            name: value for tree in (trainable, fixed) for name, value in tree.items() if ":" not in name
        }
        for name, kind in self.kinds.items():
            if f"values:{name}" in fixed:
                entries = fixed[f"values:{name}"].astype(jnp.float32)
            else:
                codebook = rounded(jnp.clip(trainable[f"codebook:{name}"], *PALETTE_KINDS[kind].grid))
                entries = unfold(fixed[f"codes:{name}"], codebook, kind, self.inputs[name])
            scale = fixed[f"scale:{name}"] * jnp.exp(trainable[f"scale:{name}"])
            found[name] = scale[:, None] * entries
        return found | {name: found[held].T if flip else found[held] for name, held, flip in self._names}


def learned(parts: Parts, kind: str, trainable: Tree, name: str) -> Parts:
    """Scale and codebook of a projection of a kind as they are to be stored, in place of ``parts``; these, if
    it did not learn.

    Raises:
        AdapterError: what was learned is not finite, or a scale is beyond half precision.
    """
    if f"scale:{name}" not in trainable:
        return parts
    factors = np.exp(np.asarray(trainable[f"scale:{name}"], np.float64))
    with np.errstate(over="ignore"):
        scale = (parts[0] * factors).astype(np.float16)
    entries = np.asarray(trainable.get(f"codebook:{name}", 0.0))
    if not (np.isfinite(scale).all() and np.isfinite(entries).all()):
        raise AdapterError(f"{name}: training led to numbers that are not finite")
    if f"codebook:{name}" not in trainable:
        return scale, None
    return scale, np.rint(np.clip(entries, *PALETTE_KINDS[kind].grid)).astype(np.int8)
