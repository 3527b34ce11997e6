"""Llama 2, 3, 3.1, 3.2 and TinyLlama (arXiv 2302.13971, 2307.09288, 2407.21783).

RMSNorm before each half of the block, rotate-half rotary embedding, grouped-query attention, SwiGLU. Unusual:
the head is tied in the small 3.2 models only, and 3.1 onwards stretches the rotary frequencies (see
:mod:`pocketlm.families.rope`).
"""

from __future__ import annotations

from pocketlm.builder import GraphBuilder
from pocketlm.families import family
from pocketlm.families.config import ACTIVATIONS, MAX_HEAD_DIM, MAX_LAYERS, Config
from pocketlm.families.rope import rotary
from pocketlm.graph import Graph, Weight


@family("llama")
def build(config: Config) -> Graph:
    """Builds the graph from ``LlamaConfig``."""
    vocab, width = config.size("vocab_size"), config.size("hidden_size")
    heads = config.size("num_attention_heads")
    kv_heads = config.size("num_key_value_heads", heads)
    if heads % kv_heads:
        raise config.error("num_key_value_heads", f"({kv_heads}) must divide num_attention_heads ({heads})")
    if "head_dim" not in config and width % heads:
        raise config.error("num_attention_heads", f"({heads}) must divide hidden_size ({width})")
    head_dim = config.size("head_dim", width // heads, most=MAX_HEAD_DIM)
    q_width = config.product(("num_attention_heads", heads), ("head_dim", head_dim))
    kv_width = kv_heads * head_dim
    ffn = config.size("intermediate_size")
    activation = config.choice("hidden_act", ACTIVATIONS, "silu")
    eps = config.number("rms_norm_eps", 1e-6)
    rope = rotary(config, head_dim)
    attention_bias, ffn_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    tied = config.flag("tie_word_embeddings", False)

    graph = GraphBuilder("llama", vocab, config.size("max_position_embeddings", 2048))
    embedding = Weight("model.embed_tokens.weight", (vocab, width))
    x = graph.embed("embed", embedding)
    for i in range(config.size("num_hidden_layers", most=MAX_LAYERS)):
        prefix = f"model.layers.{i}"

        def linear(value: int, name: str, weight: str, size: int, biased: bool, prefix: str = prefix) -> int:
            bias = f"{prefix}.{weight}.bias" if biased else None
            return graph.linear(value, name, f"{prefix}.{weight}.weight", size, bias=bias)

        with graph.layer(i):
            h = graph.norm(x, "attn.norm", f"{prefix}.input_layernorm.weight", eps)
            q = linear(h, "attn.q", "self_attn.q_proj", q_width, attention_bias)
            k = linear(h, "attn.k", "self_attn.k_proj", kv_width, attention_bias)
            v = linear(h, "attn.v", "self_attn.v_proj", kv_width, attention_bias)
            a = graph.attention(
                graph.rope(q, "attn.q.rope", head_dim, rope),
                graph.rope(k, "attn.k.rope", head_dim, rope),
                v,
                "attn",
                heads=heads,
                kv_heads=kv_heads,
                head_dim=head_dim,
                scale=head_dim**-0.5,
                cache=i,
            )
            a = linear(a, "attn.out", "self_attn.o_proj", width, attention_bias)
            x = graph.add(x, a, "attn.residual")
            h = graph.norm(x, "ffn.norm", f"{prefix}.post_attention_layernorm.weight", eps)
            gate = linear(h, "ffn.gate", "mlp.gate_proj", ffn, ffn_bias)
            up = linear(h, "ffn.up", "mlp.up_proj", ffn, ffn_bias)
            h = graph.gated(gate, up, "ffn.act", activation)
            x = graph.add(x, linear(h, "ffn.down", "mlp.down_proj", width, ffn_bias), "ffn.residual")
    x = graph.norm(x, "norm", "model.norm.weight", eps)
    graph.head(x, embedding if tied else "lm_head.weight", vocab)
    return graph.build()
