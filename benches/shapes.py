"""The shapes that benchmarks run: published configurations, key for key, and their tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Tensor = tuple[str, tuple[int, ...]]

_COMMON = {"initializer_range": 0.02, "use_cache": True}
_LLAMA = _COMMON | {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "mlp_bias": False,
    "model_type": "llama",
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
}
_LLAMA32_ROPE = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def _llama(width: int, ffn: int, layers: int, heads: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    sizes = {
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }
    return dict(sorted((_LLAMA | sizes | more).items()))


def _openelm(layers: int, width: int, head_dim: int, heads: list[int]) -> dict[str, Any]:
    """As published: query multipliers as two ends, feed-forward multipliers expanded, heads stated."""
    values = _COMMON | {
        "activation_fn_name": "swish",
        "architectures": ["OpenELMForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_openelm.OpenELMConfig",
            "AutoModelForCausalLM": "modeling_openelm.OpenELMForCausalLM",
        },
        "ffn_dim_divisor": 256,
        "ffn_multipliers": [round(0.5 + 3.5 * i / (layers - 1), 2) for i in range(layers)],
        "ffn_with_glu": True,
        "head_dim": head_dim,
        "max_context_length": 2048,
        "model_dim": width,
        "model_type": "openelm",
        "normalization_layer_name": "rms_norm",
        "normalize_qk_projections": True,
        "num_gqa_groups": 4,
        "num_kv_heads": [h // 4 for h in heads],
        "num_query_heads": heads,
        "num_transformer_layers": layers,
        "qkv_multipliers": [0.5, 1.0],
        "rope_freq_constant": 10000,
        "rope_max_length": 4096,
        "share_input_output_layers": True,
        "vocab_size": 32000,
    }
    return dict(sorted(values.items()))


SHAPES: dict[str, dict[str, Any]] = {
    "llama-tiny": _llama(
        288, 768, 6, 6, 6, vocab_size=4096, max_position_embeddings=8192, tie_word_embeddings=True
    ),
    "tinyllama-1.1b": _llama(
        2048, 5632, 22, 32, 4, vocab_size=32000, max_position_embeddings=2048, tie_word_embeddings=False
    ),
    # The published vocabulary is 128,256. The table of peers was measured with 32,000, so that is the default
    # here; `--vocab 128256` gives the real one.
    "llama-3.2-1b": _llama(
        2048,
        8192,
        16,
        32,
        8,
        vocab_size=32000,
        max_position_embeddings=131072,
        tie_word_embeddings=True,
        head_dim=64,
        rope_scaling=_LLAMA32_ROPE,
        rope_theta=500000.0,
    ),
    "afm-3b": _llama(
        3072,
        8192,
        26,
        24,
        8,
        vocab_size=49152,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        head_dim=128,
        rope_theta=500000.0,
    ),
    # Not a published one: heads and feed-forward as models of 3 billion parameters have them.
    "llama-3b": _llama(
        3072, 8192, 26, 24, 8, vocab_size=49152, max_position_embeddings=8192, tie_word_embeddings=True
    ),
    "openelm-270m": _openelm(16, 1280, 64, [12] * 5 + [16] * 7 + [20] * 4),
    "openelm-450m": _openelm(20, 1536, 64, [12] * 3 + [16] * 7 + [20] * 6 + [24] * 4),
    "openelm-1.1b": _openelm(28, 2048, 64, [16] * 3 + [20] * 7 + [24] * 8 + [28] * 6 + [32] * 4),
    "openelm-3b": _openelm(36, 3072, 128, [12] * 4 + [16] * 14 + [20] * 12 + [24] * 6),
}
CONTEXT_KEYS = ("max_position_embeddings", "max_context_length")


def tensors(config: dict[str, Any]) -> Iterator[Tensor]:
    """Names and shapes of a checkpoint's tensors, in the order of use."""
    yield from _openelm_tensors(config) if config["model_type"] == "openelm" else _llama_tensors(config)


def _llama_tensors(c: dict[str, Any]) -> Iterator[Tensor]:
    width, ffn = c["hidden_size"], c["intermediate_size"]
    head_dim = c.get("head_dim") or width // c["num_attention_heads"]
    q, kv = c["num_attention_heads"] * head_dim, c["num_key_value_heads"] * head_dim
    yield "model.embed_tokens.weight", (c["vocab_size"], width)
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        yield f"{layer}.input_layernorm.weight", (width,)
        yield f"{layer}.self_attn.q_proj.weight", (q, width)
        yield f"{layer}.self_attn.k_proj.weight", (kv, width)
        yield f"{layer}.self_attn.v_proj.weight", (kv, width)
        yield f"{layer}.self_attn.o_proj.weight", (width, q)
        yield f"{layer}.post_attention_layernorm.weight", (width,)
        yield f"{layer}.mlp.gate_proj.weight", (ffn, width)
        yield f"{layer}.mlp.up_proj.weight", (ffn, width)
        yield f"{layer}.mlp.down_proj.weight", (width, ffn)
    yield "model.norm.weight", (width,)
    if not c["tie_word_embeddings"]:
        yield "lm_head.weight", (c["vocab_size"], width)


def _openelm_tensors(c: dict[str, Any]) -> Iterator[Tensor]:
    width, head_dim = c["model_dim"], c["head_dim"]
    yield "transformer.token_embeddings.weight", (c["vocab_size"], width)
    for i, (heads, kv_heads, ratio) in enumerate(
        zip(c["num_query_heads"], c["num_kv_heads"], c["ffn_multipliers"], strict=True)
    ):
        layer = f"transformer.layers.{i}"
        ffn = int(ratio * width + 128) // 256 * 256  # never 10 % below ratio * width at these sizes
        yield f"{layer}.attn_norm.weight", (width,)
        yield f"{layer}.attn.qkv_proj.weight", ((heads + 2 * kv_heads) * head_dim, width)
        yield f"{layer}.attn.q_norm.weight", (head_dim,)
        yield f"{layer}.attn.k_norm.weight", (head_dim,)
        yield f"{layer}.attn.out_proj.weight", (width, heads * head_dim)
        yield f"{layer}.ffn_norm.weight", (width,)
        yield f"{layer}.ffn.proj_1.weight", (2 * ffn, width)
        yield f"{layer}.ffn.proj_2.weight", (width, ffn)
    yield "transformer.norm.weight", (width,)
