"""Writes a Hugging Face checkpoint as a GGUF file of 16-bit matrices, one tensor in memory at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benches.checkpoint import Checkpoint

Array = NDArray[np.float32]
Source = tuple[str, tuple[int, ...], Any]  # name in the file, shape, function that reads it

_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "attn_norm": "attn_norm",
    "attn.qkv_proj": "attn_qkv",
    "attn.q_norm": "attn_q_norm",
    "attn.k_norm": "attn_k_norm",
    "attn.out_proj": "attn_output",
    "ffn_norm": "ffn_norm",
    "ffn.proj_2": "ffn_down",
}
_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "transformer.token_embeddings.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "transformer.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def adjacent_pairs(weight: Array, heads: int) -> Array:
    """Rows reordered from pairs (i, i + n/2) to (2i, 2i + 1), as llama.cpp rotates in ``llama`` models."""
    rows = weight.reshape(heads, 2, -1, weight.shape[1])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def sources(model: Checkpoint) -> Iterator[Source]:
    """What the file holds, in order."""
    config = model.config
    heads = {"attn_q": config.get("num_attention_heads"), "attn_k": config.get("num_key_value_heads")}
    for name in model.names():
        shape = model.shape(name)
        if name in _OUTER:
            yield _OUTER[name], shape, lambda name=name: model[name]
            continue
        parts = name.split(".")
        prefix, site = f"blk.{parts[2]}", ".".join(parts[3:-1])
        if site == "ffn.proj_1":
            half = shape[0] // 2
            yield f"{prefix}.ffn_gate.weight", (half, shape[1]), lambda name=name, h=half: model[name][:h]
            yield f"{prefix}.ffn_up.weight", (half, shape[1]), lambda name=name, h=half: model[name][h:]
            continue
        target = _LAYER[site]
        if config["model_type"] == "llama" and target in heads:
            count = heads[target]
            yield (
                f"{prefix}.{target}.weight",
                shape,
                lambda name=name, n=count: adjacent_pairs(model[name], n),
            )
        else:
            yield f"{prefix}.{target}.weight", shape, lambda name=name: model[name]
    scaling = config.get("rope_scaling")
    if scaling:
        divisors = rope_divisors(config, scaling)
        yield "rope_freqs.weight", divisors.shape, lambda: divisors


def rope_divisors(config: dict[str, Any], scaling: dict[str, Any]) -> Array:
    """What llama.cpp divides each rotary frequency by (the scaling of Llama 3.1)."""
    if scaling.get("rope_type") != "llama3":
        raise ValueError(f"rope_scaling: {scaling} is not supported here")
    dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    wavelengths = 2 * math.pi * config["rope_theta"] ** (np.arange(0, dim, 2) / dim)
    factor, low, high = (scaling[key] for key in ("factor", "low_freq_factor", "high_freq_factor"))
    smooth = (scaling["original_max_position_embeddings"] / wavelengths - low) / (high - low)
    smooth = np.clip(smooth, 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def describe(writer: Any, model: Checkpoint) -> None:
    """The hyperparameters."""
    config = model.config
    writer.add_vocab_size(config["vocab_size"])
    if config["model_type"] == "openelm":
        head_dim, kv_heads = config["head_dim"], config["num_kv_heads"]
        writer.add_context_length(config["max_context_length"])
        writer.add_block_count(layers := config["num_transformer_layers"])
        writer.add_embedding_length(config["model_dim"])
        # Configurations write the multipliers out, or their first and last only.
        names = [f"transformer.layers.{i}.ffn.proj_2.weight" for i in range(layers)]
        writer.add_feed_forward_length([model.shape(name)[1] for name in names])
        writer.add_head_count(config["num_query_heads"])
        writer.add_head_count_kv(kv_heads)
        writer.add_rope_freq_base(float(config["rope_freq_constant"]))
        eps = 1e-6
    else:
        head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_rope_freq_base(config["rope_theta"])
        eps = config["rms_norm_eps"]
        if config.get("sliding_window"):
            writer.add_sliding_window(config["sliding_window"])
    writer.add_layer_norm_rms_eps(eps)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)


def describe_tokenizer(writer: Any, path: Path, config: dict[str, Any]) -> None:
    """The vocabulary, as a byte-level BPE."""
    values = json.loads(path.read_text())
    special = {token["content"] for token in values["added_tokens"]}
    ids = values["model"]["vocab"] | {token["content"]: token["id"] for token in values["added_tokens"]}
    tokens = sorted(ids, key=lambda token: ids[token])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])  # control, normal
    writer.add_token_merges([" ".join(pair) for pair in values["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])


def write(checkpoint: Path, target: Path) -> None:
    """Writes ``target``: matrices in float16, vectors in float32."""
    import gguf

    model = Checkpoint(checkpoint)
    writer = gguf.GGUFWriter(target, model.config["model_type"])
    describe(writer, model)
    describe_tokenizer(writer, checkpoint / "tokenizer.json", model.config)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    wanted = list(sources(model))
    for name, shape, _ in wanted:
        dtype = np.dtype(np.float16 if len(shape) > 1 else np.float32)
        writer.add_tensor_info(name, shape, dtype, math.prod(shape) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, shape, read in wanted:
        writer.write_tensor_data(np.ascontiguousarray(read(), np.float16 if len(shape) > 1 else np.float32))
    writer.close()
