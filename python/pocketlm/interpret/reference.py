"""The oracle: runs a graph with NumPy, by default in float64, with nothing fused and nothing cached.

Written to be read beside the papers; its only concern is to be right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from pocketlm.errors import ParameterError, UnsupportedError, WeightError
from pocketlm.graph import (
    Activation,
    Add,
    Attention,
    Clip,
    Embed,
    Gated,
    Graph,
    Linear,
    Norm,
    Op,
    Positions,
    Rope,
    Scale,
    Slice,
    Softcap,
    Weight,
)

Array = NDArray[Any]
OpType = TypeVar("OpType", bound=Op)

_erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu_tanh(x: Array) -> Array:
    """The tanh approximation of GELU (arXiv 1606.08415, eq. 2)."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: Array) -> Array:
    """``x * sigmoid(x)``, without overflow for large negative x."""
    return x * np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": silu,
    "gelu": lambda x: (0.5 * x * (1 + _erf(x / math.sqrt(2)))).astype(x.dtype),
    "gelu_tanh": gelu_tanh,
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
}


class Reference:
    """Runs ``graph`` over ``weights`` (name -> array) in ``dtype``."""

    def __init__(self, graph: Graph, weights: Mapping[str, ArrayLike], dtype: DTypeLike = np.float64) -> None:
        self.graph, self.weights = graph, weights
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self._cache: dict[int, tuple[Array, Array]] = {}

    def logits(self, ids: ArrayLike) -> Array:
        """Logits [tokens, vocabulary] of one sequence of token ids [tokens]."""
        return self.values(ids)[-1]

    def trace(self, ids: ArrayLike) -> dict[str, Array]:
        """The result [tokens, width] of every operation, by its name."""
        return {op.name: value for op, value in zip(self.graph.ops, self.values(ids), strict=True)}

    def number(self, value: float) -> Any:
        """A constant in the working dtype, so that it does not widen the results."""
        return np.asarray(value, self.dtype)[()]

    def values(self, ids: ArrayLike) -> list[Array]:
        """The results of all operations, in order."""
        tokens = np.asarray(ids, dtype=np.int64)
        if tokens.ndim != 1 or tokens.size == 0:
            raise ParameterError(
                f"ids: expected one sequence of token ids, not an array of shape {tokens.shape}"
            )
        if tokens.min() < 0 or tokens.max() >= self.graph.vocab_size:
            raise ParameterError(f"ids: token ids must be from 0 to {self.graph.vocab_size - 1}")
        self._cache = {}
        values: list[Array] = []
        for op in self.graph.ops:
            values.append(self.apply(op, tokens, *(values[i] for i in op.inputs())))
        return values

    def weight(self, weight: Weight) -> Array:
        """A tensor in the working dtype, as [outputs, inputs] whatever its storage."""
        if weight.name not in self.weights:
            raise WeightError(f"tensor {weight.name!r} is missing")
        array = np.asarray(self.weights[weight.name]).astype(self.dtype)
        array = array.T if weight.transposed else array
        if array.shape != weight.shape:
            raise WeightError(f"tensor {weight.name!r} has shape {array.shape}, expected {weight.shape}")
        return array

    def apply(self, op: Op, ids: Array, *inputs: Array) -> Array:
        """The result [tokens, width] of one operation on the given inputs."""
        match op:
            case Embed():
                return self.weight(op.weight)[ids] * self.number(op.scale)
            case Positions():
                return self.weight(op.weight)[np.arange(len(ids))]
            case Norm():
                return self.norm(op, *inputs)
            case Linear():
                y: Array = inputs[0] @ self.weight(op.weight).T
                return y if op.bias is None else y + self.weight(op.bias)
            case Slice():
                return inputs[0][:, op.start : op.start + op.width]
            case Rope():
                return self.rope(op, *inputs)
            case Attention():
                return self.attention(op, *inputs)
            case Add():
                return inputs[0] + inputs[1]
            case Activation():
                return ACTIVATIONS[op.activation](inputs[0])
            case Gated():
                return ACTIVATIONS[op.activation](inputs[0]) * inputs[1]
            case Scale():
                return inputs[0] * self.number(op.factor)
            case Softcap():
                return op.cap * np.tanh(inputs[0] / op.cap)
            case Clip():
                return np.clip(inputs[0], -op.limit, op.limit)
            case _:
                raise UnsupportedError(f"the reference does not know {type(op).__name__} ({op.name})")

    def norm(self, op: Norm, x: Array) -> Array:
        """RMSNorm or LayerNorm over each group of channels."""
        grouped = x.reshape(len(x), -1, op.group or x.shape[1])
        if op.norm == "layer":
            grouped = grouped - grouped.mean(-1, keepdims=True)
        y = grouped / np.sqrt((grouped**2).mean(-1, keepdims=True) + op.eps)
        if op.weight is not None:
            y = y * (self.weight(op.weight) + self.number(op.offset))
        if op.bias is not None:
            y = y + self.weight(op.bias)
        return y.reshape(x.shape)

    def rope(self, op: Rope, x: Array) -> Array:
        """Rotates pairs of channels of each head by position times frequency."""
        pairs = len(op.rotary.frequencies)
        angles = np.arange(len(x))[:, None, None] * np.asarray(op.rotary.frequencies)
        cos, sin = (op.rotary.scale * f(angles).astype(self.dtype) for f in (np.cos, np.sin))
        y = x.reshape(len(x), -1, op.head_dim).copy()
        rotated = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
        if not op.rotary.interleaved:
            rotated = slice(0, pairs), slice(pairs, 2 * pairs)
        first, second = y[..., rotated[0]].copy(), y[..., rotated[1]].copy()
        y[..., rotated[0]] = first * cos - second * sin
        y[..., rotated[1]] = second * cos + first * sin
        return y.reshape(x.shape)

    def attention(self, op: Attention, q: Array, k: Array | None = None, v: Array | None = None) -> Array:
        """Softmax attention of each query head over the keys and values of its group."""
        tokens = len(q)
        if k is not None and v is not None:
            self._cache[op.cache] = tuple(a.reshape(tokens, op.kv_heads, op.head_dim) for a in (k, v))  # type: ignore[assignment]
        keys, values = self._cache[op.cache]
        queries = q.reshape(tokens, op.kv_heads, op.heads // op.kv_heads, op.head_dim)
        scores = np.einsum("tkgd,skd->kgts", queries, keys) * self.number(op.scale)
        if op.softcap is not None:
            scores = op.softcap * np.tanh(scores / op.softcap)
        distance = np.arange(tokens)[:, None] - np.arange(tokens)
        hidden = (distance < 0) | (distance >= (op.window or tokens))
        scores = np.where(hidden, -np.inf, scores)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return np.einsum("kgts,skd->tkgd", weights, values).reshape(tokens, -1)
