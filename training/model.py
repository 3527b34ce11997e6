"""The story model: its configuration, its initial weights, and its loss as a pure function.

The model is whatever graph ``pocketlm.families`` builds from the configuration, run by
``pocketlm.interpret.jax``: what is trained is what the engine executes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pocketlm.families import build_graph
from pocketlm.graph import Graph
from pocketlm.interpret import jax as interpret

Params = dict[str, jax.Array]

INIT_STD = 0.02
HEAD_CHUNK = 1024  # tokens whose logits exist at the same time (32 MB for 8,192 words)

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"model_dim": 32, "num_transformer_layers": 2, "head_dim": 16, "num_gqa_groups": 2,
             "qkv_multipliers": [1.0, 2.0], "ffn_multipliers": [1.0, 2.0], "ffn_dim_divisor": 16},
    "w256x6": {"model_dim": 256, "num_transformer_layers": 6, "head_dim": 64, "num_gqa_groups": 2,
               "qkv_multipliers": [0.5, 1.5], "ffn_multipliers": [1.0, 4.0]},
    "w256x8": {"model_dim": 256, "num_transformer_layers": 8, "head_dim": 64, "num_gqa_groups": 2,
               "qkv_multipliers": [0.5, 1.5], "ffn_multipliers": [1.0, 4.0]},
    "w256x12": {"model_dim": 256, "num_transformer_layers": 12, "head_dim": 64, "num_gqa_groups": 2,
                "qkv_multipliers": [0.5, 1.5], "ffn_multipliers": [1.0, 4.0]},
    "w384x8": {"model_dim": 384, "num_transformer_layers": 8, "head_dim": 64, "num_gqa_groups": 2,
               "qkv_multipliers": [0.5, 1.0], "ffn_multipliers": [1.0, 3.0], "ffn_dim_divisor": 128},
}  # fmt: skip


def make_config(shape: str, vocab_size: int, max_context: int = 1024) -> dict[str, Any]:
    """The ``config.json`` of a shape, with the keys that the published OpenELM configurations have."""
    config: dict[str, Any] = {
        "model_type": "openelm",
        "architectures": ["OpenELMForCausalLM"],
        "activation_fn_name": "swish",
        "bos_token_id": 0,
        "eos_token_id": 0,
        "ffn_dim_divisor": 256,
        "ffn_with_glu": True,
        "initializer_range": INIT_STD,
        "max_context_length": max_context,
        "normalization_layer_name": "rms_norm",
        "normalize_qk_projections": True,
        "rope_freq_constant": 10000,
        "rope_max_length": 2 * max_context,
        "share_input_output_layers": True,
        "use_cache": True,
        "vocab_size": vocab_size,
        **SHAPES[shape],
    }
    heads = {op.cache: (op.heads, op.kv_heads) for op in build_graph(config).ops if op.kind == "attention"}
    config["num_query_heads"] = [heads[i][0] for i in range(len(heads))]
    config["num_kv_heads"] = [heads[i][1] for i in range(len(heads))]
    return config


def init_params(graph: Graph, seed: int) -> Params:
    """Float32 weights: 1 for norms, 0 for what writes to the residual stream, else normal.

    The standard deviation is 0.02 for the embedding and ``fan_in ** -0.5`` for the projections.
    """
    rng = np.random.default_rng(seed)
    params = {}
    for name, weight in graph.weights().items():
        if len(weight.shape) == 1:
            value = np.ones(weight.shape)
        elif name.endswith(("out_proj.weight", "proj_2.weight")):
            value = np.zeros(weight.shape)
        else:
            std = INIT_STD if "embedding" in name else weight.shape[1] ** -0.5
            value = rng.standard_normal(weight.shape) * std
        params[name] = jnp.asarray(value, jnp.float32)
    return params


def chunked(h: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    size = next(c for c in range(min(HEAD_CHUNK, len(targets)), 0, -1) if len(targets) % c == 0)
    return h.reshape(-1, size, h.shape[-1]), targets.reshape(-1, size)


@partial(jax.custom_vjp, nondiff_argnums=())
def cross_entropy(h: jax.Array, table: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean of ``logsumexp(h @ table.T) - (h @ table.T)[target]`` over rows; logits live one chunk at a time.

    ``h`` [rows, width], ``table`` [vocabulary, width], ``targets`` [rows].
    """
    return token_losses(h, table, targets).mean()


def token_losses(h: jax.Array, table: jax.Array, targets: jax.Array) -> jax.Array:
    """Loss in nats of each row."""

    def one(_: None, part: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        rows, ids = part
        logits = rows @ table.T
        chosen = jnp.take_along_axis(logits, ids[:, None], 1)[:, 0]
        return None, jax.nn.logsumexp(logits, axis=-1) - chosen

    return jax.lax.scan(one, None, chunked(h, targets))[1].reshape(-1)


def _forward(h: jax.Array, table: jax.Array, targets: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    # Gradients are formed in the forward pass, while the logits of a chunk are at hand: three products
    # instead of four.
    count = len(targets)

    def one(
        total: jax.Array, part: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        rows, ids = part
        logits = rows @ table.T
        top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
        weights = jnp.exp(logits - top)
        norm = weights.sum(-1, keepdims=True)
        chosen = jnp.take_along_axis(logits, ids[:, None], 1)
        loss = jnp.log(norm) + top - chosen
        delta = weights / (norm * count) - (jnp.arange(table.shape[0]) == ids[:, None]) * (1 / count)
        return total + rows.T @ delta, (loss[:, 0], delta @ table)

    grad_table, (losses, grad_h) = jax.lax.scan(one, jnp.zeros_like(table.T), chunked(h, targets))
    return losses.mean(), (grad_h.reshape(h.shape), jax.lax.optimization_barrier(grad_table).T)


def _backward(saved: tuple[jax.Array, ...], g: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    grad_h, grad_table = saved
    return grad_h * g, grad_table * g, None


cross_entropy.defvjp(_forward, _backward)


def loss(graph: Graph, params: Params, windows: jax.Array) -> jax.Array:
    """Mean cross-entropy in nats per token of ``windows`` [batch, context + 1]."""
    h = interpret.hidden(graph, params, windows[:, :-1])
    table = params[graph.ops[-1].weights()[0].name]
    return cross_entropy(h.reshape(-1, h.shape[-1]), table, windows[:, 1:].reshape(-1))
