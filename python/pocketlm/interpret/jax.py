"""Runs a graph with JAX, for gradients: sensitivities, recovery adapters and training (extra ``train``).

Batched over sequences; the arithmetic is that of :mod:`pocketlm.interpret.reference`. Matrix products run in
the dtype of ``params``, norms and softmax in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pocketlm.errors import UnsupportedError
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

Params = Mapping[str, jax.Array]
Read = Callable[[Linear, jax.Array], jax.Array]  # what a product reads of its operand

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}


def logits(graph: Graph, params: Params, ids: jax.Array, read: Read | None = None) -> jax.Array:
    """Logits [batch, tokens, vocabulary] of ids [batch, tokens]. Pure; meant for ``jit`` and ``grad``.

    ``read`` replaces what each product reads, to simulate quantized activations.
    """
    return run(graph.ops, params, ids, read)


def hidden(graph: Graph, params: Params, ids: jax.Array) -> jax.Array:
    """What the head reads [batch, tokens, width]: for losses that compute the logits in pieces."""
    return run(graph.ops[:-1], params, ids)


def run(ops: tuple[Op, ...], params: Params, ids: jax.Array, read: Read | None = None) -> jax.Array:
    """The result of the last of ``ops``, which must be a prefix of a graph's operations."""
    values: list[jax.Array] = []
    cache: dict[int, tuple[jax.Array, jax.Array]] = {}
    fused = fused_linears(ops)
    for index, op in enumerate(ops):
        if index in fused:
            values.append(values[fused[index].x])  # its slices multiply for themselves
        elif isinstance(op, Slice) and op.x in fused:
            whole = fused[op.x]
            x = values[op.x] if read is None else read(whole, values[op.x])
            values.append(linear(whole, params, x, op.start, op.start + op.width))
        else:
            inputs = [values[i] for i in op.inputs()]
            if read is not None and isinstance(op, Linear):
                inputs = [read(op, inputs[0])]
            values.append(apply(op, params, ids, cache, *inputs))
    return values[-1]


def fused_linears(ops: tuple[Op, ...]) -> dict[int, Linear]:
    """The products that only slices read, by index.

    Each slice is computed with its own rows of the weight: the gradient of a slice of a large result would be
    padded with zeros and added up, at several times the memory traffic.
    """
    readers: dict[int, list[Op]] = {}
    for op in ops:
        for i in op.inputs():
            readers.setdefault(i, []).append(op)
    return {
        i: op
        for i, op in enumerate(ops)
        if isinstance(op, Linear) and i in readers and all(isinstance(reader, Slice) for reader in readers[i])
    }


def linear(op: Linear, params: Params, x: jax.Array, start: int = 0, stop: int | None = None) -> jax.Array:
    """Outputs ``start`` to ``stop`` of a product."""
    y = product(x.reshape(-1, x.shape[-1]), matrix(params, op.weight)[start:stop]).reshape(*x.shape[:-1], -1)
    return y if op.bias is None else y + params[op.bias.name][start:stop]


def matrix(params: Params, weight: Weight) -> jax.Array:
    """A weight as [outputs, inputs]."""
    return params[weight.name].T if weight.transposed else params[weight.name]


def apply(op: Op, params: Params, ids: jax.Array, cache: dict[int, Any], *inputs: jax.Array) -> jax.Array:
    """The result [batch, tokens, width] of one operation."""
    match op:
        case Embed():
            return jnp.take(params[op.weight.name], ids, axis=0) * op.scale
        case Positions():
            return jnp.broadcast_to(params[op.weight.name][: ids.shape[1]], (*ids.shape, op.width))
        case Norm():
            return norm(op, params, *inputs)
        case Linear():
            return linear(op, params, inputs[0])
        case Slice():
            return inputs[0][..., op.start : op.start + op.width]
        case Rope():
            return rope(op, *inputs)
        case Attention():
            if len(inputs) == 3:
                cache[op.cache] = inputs[1:]
            return attention(op, inputs[0], *cache[op.cache])
        case Add():
            return inputs[0] + inputs[1]
        case Activation():
            return ACTIVATIONS[op.activation](inputs[0])
        case Gated():
            return ACTIVATIONS[op.activation](inputs[0]) * inputs[1]
        case Scale():
            return inputs[0] * op.factor
        case Softcap():
            return op.cap * jnp.tanh(inputs[0] / op.cap)
        case Clip():
            return jnp.clip(inputs[0], -op.limit, op.limit)
        case _:
            raise UnsupportedError(f"the JAX interpreter does not know {type(op).__name__} ({op.name})")


@jax.custom_vjp
def product(x: jax.Array, w: jax.Array) -> jax.Array:
    """``x @ w.T`` for x [rows, inputs] and w [outputs, inputs]."""
    return x @ w.T


def product_forward(x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The product, and what its gradient needs."""
    return x @ w.T, (x, w)


def product_backward(saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both gradients.

    XLA transposes the left factor of ``g.T @ x`` in memory, at several times the cost of the product, so let
    that be the narrower one. The barriers keep it from choosing otherwise, and from computing ``g`` itself a
    second time, column by column, inside that transposition.
    """
    x, w = saved
    x, g = jax.lax.optimization_barrier((x, g))
    grad_w = g.T @ x if g.shape[1] <= x.shape[1] else jax.lax.optimization_barrier(x.T @ g).T
    return g @ w, grad_w


product.defvjp(product_forward, product_backward)


def norm(op: Norm, params: Params, x: jax.Array) -> jax.Array:
    """RMSNorm or LayerNorm over each group of channels, computed in float32."""
    grouped = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, op.group or x.shape[-1])
    if op.norm == "layer":
        grouped = grouped - grouped.mean(-1, keepdims=True)
    y = grouped * jax.lax.rsqrt(jnp.square(grouped).mean(-1, keepdims=True) + op.eps)
    if op.weight is not None:
        y = y * (params[op.weight.name] + op.offset)
    if op.bias is not None:
        y = y + params[op.bias.name]
    return y.reshape(x.shape).astype(x.dtype)


def rope(op: Rope, x: jax.Array) -> jax.Array:
    """Rotates pairs of channels of each head by position times frequency."""
    pairs = len(op.rotary.frequencies)
    angles = jnp.arange(x.shape[-2])[:, None, None] * jnp.asarray(op.rotary.frequencies, jnp.float32)
    cos, sin = (op.rotary.scale * f(angles).astype(x.dtype) for f in (jnp.cos, jnp.sin))
    y = x.reshape(*x.shape[:-1], -1, op.head_dim)
    if op.rotary.interleaved:
        first, second = y[..., 0 : 2 * pairs : 2], y[..., 1 : 2 * pairs : 2]
    else:
        first, second = y[..., :pairs], y[..., pairs : 2 * pairs]
    rotated = first * cos - second * sin, second * cos + first * sin
    joined = (
        jnp.stack(rotated, -1).reshape(*y.shape[:-1], -1)
        if op.rotary.interleaved
        else jnp.concatenate(rotated, -1)
    )
    return jnp.concatenate([joined, y[..., 2 * pairs :]], -1).reshape(x.shape)


def attention(op: Attention, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Softmax attention of each query head over the keys and values of its group."""
    batch, tokens, _ = q.shape
    # Query heads of a group become more rows of one product per KV head, so scores need no transposition.
    queries = q.reshape(batch, tokens, op.heads, op.head_dim).swapaxes(1, 2) * op.scale
    queries = queries.reshape(batch, op.kv_heads, -1, op.head_dim)
    keys, values = (a.reshape(batch, tokens, op.kv_heads, op.head_dim).swapaxes(1, 2) for a in (k, v))
    scores = jnp.einsum("bkrd,bksd->bkrs", queries, keys).astype(jnp.float32)
    if op.softcap is not None:
        scores = op.softcap * jnp.tanh(scores / op.softcap)
    distance = jnp.arange(tokens)[:, None] - jnp.arange(tokens)
    seen = (distance >= 0) & (distance < (op.window or tokens))
    seen = jnp.tile(seen, (op.heads // op.kv_heads, 1))
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1).astype(v.dtype)
    mixed = jnp.einsum("bkrs,bksd->bkrd", weights, values)
    return mixed.reshape(batch, op.heads, tokens, op.head_dim).swapaxes(1, 2).reshape(batch, tokens, -1)
