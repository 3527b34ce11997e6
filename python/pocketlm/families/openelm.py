"""OpenELM (arXiv 2404.14619): layers that are not alike.

Unusual: heads and feed-forward widths grow with depth (layer-wise scaling), queries and keys are
RMS-normalised per head before the rotation, query, key and value are one projection, and so are gate and up;
the embedding is the head.
"""

from __future__ import annotations

from pocketlm.builder import GraphBuilder
from pocketlm.checks import shown
from pocketlm.families import family
from pocketlm.families.config import ACTIVATIONS, MAX_HEAD_DIM, MAX_LAYERS, MAX_SIZE, Config
from pocketlm.families.rope import rotary
from pocketlm.graph import Graph, Weight

NORM_EPS = 1e-6  # fixed in the published code, absent from its configuration


def make_divisible(value: float, divisor: int) -> int:
    """The multiple of ``divisor`` nearest to ``value``, but not below 90 % of it (MobileNet's rule)."""
    result = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return result + divisor if result < 0.9 * value else result


def multipliers(config: Config, key: str, layers: int) -> list[float]:
    """One factor per layer, from a list of as many or the two ends of a ramp (rounded to 2 digits)."""
    value = config.raw(key)
    values = value if isinstance(value, list) else [value] * layers
    if any(isinstance(v, bool) or not isinstance(v, (int, float)) or not 0 < v < 1000 for v in values):
        raise config.error(key, f"must hold numbers above 0 and below 1000, not {shown(value)}")
    if len(values) == layers:
        return [float(v) for v in values]
    if len(values) != 2:
        raise config.error(key, f"must hold 2 or {layers} numbers, not {len(values)}")
    low, high = values
    step = (high - low) / (layers - 1) if layers > 1 else 0.0
    return [round(low + step * i, 2) for i in range(layers)]


def per_layer(config: Config, key: str, expected: list[int]) -> list[int]:
    """A list of sizes that the configuration may state, checked against what its multipliers give."""
    stated = config.raw(key, expected)
    if isinstance(stated, int):
        stated = [stated] * len(expected)
    if stated != expected:
        raise config.error(key, f"is {shown(stated)}, but the multipliers give {shown(expected)}")
    return expected


def fitting(config: Config, key: str, sizes: list[int]) -> list[int]:
    """Sizes that ``key`` gives, none of them absurd. Fused projections are at most three times as wide."""
    if max(sizes) > MAX_SIZE // 3:
        raise config.error(key, f"gives a width of {max(sizes)}; at most {MAX_SIZE // 3} is supported")
    return sizes


@family("openelm")
def build(config: Config) -> Graph:
    """Builds the graph from ``OpenELMConfig``."""
    vocab, width = config.size("vocab_size"), config.size("model_dim")
    layers = config.size("num_transformer_layers", most=MAX_LAYERS)
    head_dim = config.size("head_dim", 128, most=MAX_HEAD_DIM)
    groups = config.size("num_gqa_groups", 1)
    ratios = multipliers(config, "qkv_multipliers", layers)
    unit = config.product(("head_dim", head_dim), ("num_gqa_groups", groups))
    q_widths = fitting(config, "qkv_multipliers", [make_divisible(width * ratio, unit) for ratio in ratios])
    heads = [q_width // head_dim for q_width in q_widths]
    heads = per_layer(config, "num_query_heads", heads)
    kv_heads = per_layer(config, "num_kv_heads", [h // groups for h in heads])
    divisor = config.size("ffn_dim_divisor", 256)
    ratios = multipliers(config, "ffn_multipliers", layers)
    ffn = fitting(config, "ffn_multipliers", [make_divisible(width * ratio, divisor) for ratio in ratios])
    gated = config.flag("ffn_with_glu", True)
    activation = config.choice("activation_fn_name", ACTIVATIONS, "swish")
    config.expect("normalization_layer_name", "rms_norm")
    normalize_qk = config.flag("normalize_qk_projections", True)
    tied = config.flag("share_input_output_layers", True)
    rope = rotary(config, head_dim, theta_key="rope_freq_constant")
    config.ignore("rope_max_length")  # the length of a precomputed table, not a change of numerics

    graph = GraphBuilder("openelm", vocab, config.size("max_context_length", 2048))
    embedding = Weight("transformer.token_embeddings.weight", (vocab, width))
    x = graph.embed("embed", embedding)
    for i in range(layers):
        p = f"transformer.layers.{i}"
        q_width, kv_width = heads[i] * head_dim, kv_heads[i] * head_dim
        with graph.layer(i):
            h = graph.norm(x, "attn.norm", f"{p}.attn_norm.weight", NORM_EPS)
            qkv = graph.linear(h, "attn.qkv", f"{p}.attn.qkv_proj.weight", q_width + 2 * kv_width)
            q, k, v = graph.split(qkv, ("attn.q", q_width), ("attn.k", kv_width), ("attn.v", kv_width))
            if normalize_qk:
                q = graph.norm(q, "attn.q.norm", f"{p}.attn.q_norm.weight", NORM_EPS, group=head_dim)
                k = graph.norm(k, "attn.k.norm", f"{p}.attn.k_norm.weight", NORM_EPS, group=head_dim)
            a = graph.attention(
                graph.rope(q, "attn.q.rope", head_dim, rope),
                graph.rope(k, "attn.k.rope", head_dim, rope),
                v,
                "attn",
                heads=heads[i],
                kv_heads=kv_heads[i],
                head_dim=head_dim,
                scale=head_dim**-0.5,
                cache=i,
            )
            x = graph.add(x, graph.linear(a, "attn.out", f"{p}.attn.out_proj.weight", width), "attn.residual")
            h = graph.norm(x, "ffn.norm", f"{p}.ffn_norm.weight", NORM_EPS)
            if gated:
                both = graph.linear(h, "ffn.gate_up", f"{p}.ffn.proj_1.weight", 2 * ffn[i])
                gate, up = graph.split(both, ("ffn.gate", ffn[i]), ("ffn.up", ffn[i]))
                h = graph.gated(gate, up, "ffn.act", activation)
            else:
                h = graph.linear(h, "ffn.up", f"{p}.ffn.proj_1.weight", ffn[i])
                h = graph.activation(h, "ffn.act", activation)
            x = graph.add(x, graph.linear(h, "ffn.down", f"{p}.ffn.proj_2.weight", width), "ffn.residual")
    x = graph.norm(x, "norm", "transformer.norm.weight", NORM_EPS)
    graph.head(x, embedding if tied else "lm_head.weight", vocab)
    return graph.build()
