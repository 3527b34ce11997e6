"""Tiny random models of odd shapes, as ``config.json`` values, with their weights and prompts.

Everything follows from the name of a case, so that a fixture holds logits only. Weights are drawn per tensor
from a seed made of the case's and the tensor's name: the order in which a graph lists its tensors does not
matter.
"""

from __future__ import annotations

import zlib
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pocketlm.families import build_graph
from pocketlm.graph import Graph

Precision = Literal["full", "coarse"]
"""``full``: all 24 bits of a float32. ``coarse``: 8 significant bits, which f32, f16 and bf16 all hold."""

PRECISIONS: tuple[Precision, ...] = ("full", "coarse")


def llama(**changes: Any) -> dict[str, Any]:
    """A Llama 2 like configuration, changed."""
    values: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": 97,
        "hidden_size": 72,
        "intermediate_size": 100,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    }
    return values | changes


def openelm(**changes: Any) -> dict[str, Any]:
    """An OpenELM configuration in the published form, changed."""
    values: dict[str, Any] = {
        "model_type": "openelm",
        "activation_fn_name": "swish",
        "vocab_size": 97,
        "model_dim": 72,
        "head_dim": 12,
        "num_transformer_layers": 3,
        "num_gqa_groups": 2,
        "num_query_heads": [4, 6, 6],
        "num_kv_heads": [2, 3, 3],
        "qkv_multipliers": [0.5, 1.0],
        "ffn_multipliers": [0.5, 1.4, 2.3],
        "ffn_dim_divisor": 10,
        "ffn_with_glu": True,
        "max_context_length": 512,
        "rope_max_length": 1024,
        "rope_freq_constant": 10000,
        "normalization_layer_name": "rms_norm",
        "normalize_qk_projections": True,
        "share_input_output_layers": True,
    }
    return values | changes


LLAMA31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,  # so that all three bands of frequencies occur in a short prompt
}

CASES: dict[str, dict[str, Any]] = {
    "llama2": llama(),
    "llama-tied": llama(tie_word_embeddings=True, vocab_size=131),
    "llama-grouped": llama(
        hidden_size=80,
        num_attention_heads=10,
        num_key_value_heads=2,
        intermediate_size=36,
        rope_theta=500000.0,
    ),
    "llama-one-kv-head": llama(
        hidden_size=56, num_attention_heads=7, num_key_value_heads=1, num_hidden_layers=3
    ),
    "llama-head-dim": llama(hidden_size=40, num_attention_heads=4, num_key_value_heads=2, head_dim=18),
    "llama-biases": llama(attention_bias=True, mlp_bias=True),
    "llama-attention-bias": llama(
        attention_bias=True, hidden_size=264, num_attention_heads=4, num_key_value_heads=4
    ),
    "llama31": llama(
        rope_scaling=LLAMA31, hidden_size=96, num_attention_heads=3, num_key_value_heads=1, rope_theta=5e5
    ),
    "llama-linear-rope": llama(rope_scaling={"type": "linear", "factor": 2.5}),
    "llama-wide": llama(
        hidden_size=288, num_attention_heads=6, num_key_value_heads=3, intermediate_size=515, vocab_size=1009
    ),
    "openelm": openelm(),
    "openelm-expanded": openelm(qkv_multipliers=[0.5, 0.75, 1.0]),
    "openelm-groups": openelm(
        model_dim=120,
        head_dim=10,
        num_gqa_groups=3,
        num_query_heads=[6, 9, 12],
        num_kv_heads=[2, 3, 4],
        ffn_multipliers=[0.5, 2.25, 4.0],
        ffn_dim_divisor=16,
        vocab_size=201,
    ),
    "openelm-wide": openelm(
        model_dim=320,
        head_dim=32,
        num_transformer_layers=2,
        num_gqa_groups=1,
        num_query_heads=[5, 10],
        num_kv_heads=[5, 10],
        ffn_multipliers=[0.9, 1.7],
        ffn_dim_divisor=7,
    ),
    "llama-faint": llama(rms_norm_eps=1e-6),
    "openelm-faint": openelm(),
    "openelm-untied": openelm(share_input_output_layers=False),
    "openelm-no-qk-norm": openelm(normalize_qk_projections=False),
}

FAINT = 0.004  # embeddings and q, k, v so small that the norms' epsilon decides
LONG = {
    "llama31": 150,
    "openelm": 150,
}  # several blocks of a key-value cache, and beyond the scaling's context


def graph(case: str) -> Graph:
    """The graph that pocketlm builds."""
    return build_graph(CASES[case], case)


def ids(case: str) -> NDArray[np.int64]:
    """A prompt of odd length."""
    random = np.random.RandomState(zlib.crc32(case.encode()))
    return random.randint(0, CASES[case]["vocab_size"], LONG.get(case, 23)).astype(np.int64)


def weights(case: str, precision: Precision = "full") -> dict[str, NDArray[np.float32]]:
    """Random float32 tensors by checkpoint name, at scales that make every part of the model matter."""
    return {name: _tensor(case, name, w.shape, precision) for name, w in graph(case).weights().items()}


def _tensor(case: str, name: str, shape: tuple[int, ...], precision: Precision) -> NDArray[np.float32]:
    # The stream of the legacy generator is frozen; that of the new one is not.
    random = np.random.RandomState(zlib.crc32(f"{case}/{name}".encode()))
    values = random.standard_normal(shape)
    if name.endswith("bias"):
        values *= 0.5
    elif len(shape) == 1:
        values = 1 + 0.25 * values
    elif "embed" in name:
        values *= 0.6
    else:
        values *= 1.5 * shape[1] ** -0.5
    if case.endswith("faint") and any(part in name for part in ("embed", "q_proj", "k_proj", "qkv_proj")):
        values *= FAINT
    if precision == "coarse":
        fraction, exponent = np.frexp(values)
        values = np.ldexp(np.round(fraction * 256), exponent - 8)
        values[np.abs(values) < 2.0**-14] = 0  # below the normal range of f16
    return values.astype(np.float32)
