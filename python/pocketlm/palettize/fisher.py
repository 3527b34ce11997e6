"""The Fisher information of products' outputs, part by part of a model, with JAX (extra ``train``).

Of a distribution p = softmax(logits) the loss -log p(y), y drawn from p itself, has gradients whose products
are the Fisher information in the mean: to second order KL(p ‖ p') = ½ E[(∇ · change)²]. So the square of the
gradient at an output says what an error there costs in divergence (GuidedQuant, arXiv 2505.07004; of single
weights SqueezeLLM, arXiv 2306.07629). Labels of the text would give another matrix, that of one sample's
errors (Kunstner et al., arXiv 1905.12558).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from pocketlm.graph import Attention, Linear, Positions, Rope
from pocketlm.interpret import jax as interpreter
from pocketlm.loading import LoadedModel
from pocketlm.loading.check import stored_name
from pocketlm.palettize.segments import Segment

Bounds = Sequence[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Found:
    """What a batch of tokens says of one product.

    Attributes:
        x: what it reads, float32 [tokens, inputs].
        weights: mean over the outputs of each group of the squared gradients, float32 [groups, tokens].
        rows: their sums over the tokens, float32 [outputs].
    """

    x: NDArray[np.float32]
    weights: NDArray[np.float32]
    rows: NDArray[np.float32]


class Backward:
    """The gradient's way through one segment of a model.

    Args:
        groups: of each product, by its index in the graph, the groups of its outputs.
    """

    def __init__(self, model: LoadedModel, segment: Segment, groups: Mapping[int, Bounds]) -> None:
        self._segment = segment
        self._ops = segment.runnable(1).ops
        self._shift = segment.start - (segment.start > 0)
        self._groups = {index - self._shift: bounds for index, bounds in groups.items()}
        self._last = segment.stop == len(segment.graph.ops)
        weights = {weight.name: weight for op in segment.ops for weight in op.weights()}
        self._params = {
            name: jnp.asarray(model.store.dense(stored_name(model.store, weight)))
            for name, weight in weights.items()
        }
        self._run = jax.jit(self._traced)

    @property
    def by_token(self) -> bool:
        """Whether a token's results depend on no other, and not on its place."""
        return not any(isinstance(op, Attention | Rope | Positions) for op in self._ops)

    @property
    def widest(self) -> int:
        """Numbers of the largest result of a token."""
        return max(op.width for op in self._ops)

    def __call__(
        self, read: NDArray[Any], given: NDArray[np.float32]
    ) -> tuple[dict[int, Found], NDArray[np.float32] | None]:
        """What the segment says of its products, by index in the graph, and the gradient with respect to what
        it reads [batch, tokens, width], or ``None`` where that are token ids.

        Args:
            read: token ids [batch, tokens] of the first segment, else the hidden state before it [batch,
                tokens, width].
            given: the gradient behind the segment [batch, tokens, width]; for the last one numbers from 0 to
                1 [batch, tokens] that draw the labels.
        """
        found, slope = self._run(self._params, jnp.asarray(read), jnp.asarray(given))
        products = {index + self._shift: Found(*map(np.asarray, parts)) for index, parts in found.items()}
        return products, None if slope is None else np.asarray(slope)

    def _traced(self, params: Any, read: jax.Array, given: jax.Array) -> Any:
        first = self._segment.start == 0
        batch = read.shape[:2]
        widths = {index: self._ops[index].width for index in self._groups}
        zeros = {index: jnp.zeros((*batch, width), jnp.float32) for index, width in widths.items()}

        def forward(added: dict[int, jax.Array], state: jax.Array) -> tuple[jax.Array, Any]:
            values = [] if first else [state]
            cache: dict[int, Any] = {}
            ids = read if first else jnp.zeros(batch, jnp.int32)
            for index, op in enumerate(self._ops[len(values) :], len(values)):
                value = interpreter.apply(op, params, ids, cache, *(values[i] for i in op.inputs()))
                values.append(value + added[index] if index in added else value)
            reads = {index: self._ops[index].inputs()[0] for index in added}
            return values[-1], {index: values[x] for index, x in reads.items()}

        state = jnp.zeros((), jnp.float32) if first else read
        result, back, reads = jax.vjp(forward, zeros, state, has_aux=True)
        slopes, slope = back(drawn(result, given) if self._last else given)
        found = {}
        for index, bounds in self._groups.items():
            squares = jnp.square(slopes[index]).reshape(-1, widths[index])
            means = jnp.stack([squares[:, start:stop].mean(1) for start, stop in bounds])
            found[index] = reads[index].reshape(len(squares), -1), means, squares.sum(0)
        return found, None if first else slope


def drawn(logits: jax.Array, uniform: jax.Array) -> jax.Array:
    """The gradient [..., vocabulary] of -log softmax(logits)[y], y being drawn by ``uniform`` [...]."""
    likely = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    below = (jnp.cumsum(likely, axis=-1) <= uniform[..., None]).sum(-1)
    labels = jnp.minimum(below, logits.shape[-1] - 1)  # sums of rounded numbers may stay below 1
    return likely - jax.nn.one_hot(labels, logits.shape[-1])


def products(segment: Segment) -> dict[int, Linear]:
    """The products of a segment, by index in the graph."""
    return {i: op for i, op in enumerate(segment.ops, segment.start) if isinstance(op, Linear)}
