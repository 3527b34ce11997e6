"""CTranslate2. Its checkpoint reader needs PyTorch; the same specification is filled here without."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benches.adapters.base import Adapter, whole
from benches.checkpoint import Checkpoint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_END = "end"  # a token of no use: the vocabulary's last


class Peer(Adapter):
    """See :class:`Adapter`. Tokens are named by their ids. End tokens are not ignored but cannot be chosen,
    which costs the same."""

    title = "ctranslate2"
    packages = ("ctranslate2==4.8.5",)
    forms = {"int8": 0.99}  # noqa: RUF012

    def convert(self, checkpoint: Path, variant: str, target: Path) -> Path:
        def make(partial: Path) -> None:
            partial.mkdir()
            spec = specification(Checkpoint(checkpoint))
            spec.validate()
            spec.optimize(quantization=variant)
            spec.save(str(partial))

        return whole(target / variant, make)

    def load(self, path: Path, threads: int, context: int) -> None:
        import ctranslate2

        self.storage = ctranslate2.StorageView
        self.model = ctranslate2.Generator(str(path), "cpu", intra_threads=threads, inter_threads=1)

    def generate(self, ids: Sequence[int], count: int) -> tuple[list[int], list[float]]:
        tokens: list[int] = []
        times: list[float] = []

        def receive(step: Any) -> bool:
            tokens.append(step.token_id)
            times.append(time.perf_counter())
            return False

        self.model.generate_batch(
            [[str(i) for i in ids]],
            include_prompt_in_result=False,
            max_length=count,
            min_length=count,
            sampling_topk=1,
            callback=receive,
        )
        return tokens, times

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        found = self.model.forward_batch([[str(i) for i in ids]])
        import numpy as np

        return np.array(found, np.float32)[0, -1]

    def version(self) -> str:
        return importlib.metadata.version("ctranslate2")


def specification(model: Checkpoint) -> Any:
    """A Llama checkpoint as CTranslate2 describes it."""
    import numpy as np
    from ctranslate2.specs import TransformerDecoderModelSpec, attention_spec, common_spec

    config = model.config
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    scaling = config.get("rope_scaling")
    kinds = attention_spec.RotaryScalingType
    spec = TransformerDecoderModelSpec.from_config(
        config["num_hidden_layers"],
        heads,
        activation=common_spec.Activation.SWISH,
        ffn_glu=True,
        rms_norm=True,
        rotary_dim=0,
        rotary_interleave=False,
        rotary_scaling_type=kinds.Llama3 if scaling else None,
        rotary_scaling_factor=scaling["factor"] if scaling else 1,
        rotary_base=config["rope_theta"],
        num_heads_kv=None if kv_heads == heads else kv_heads,
        head_dim=config.get("head_dim"),
    )
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = model["model.embed_tokens.weight"]
    decoder.layer_norm.gamma = model["model.norm.weight"]
    tied = "lm_head.weight" not in model
    decoder.projection.weight = model["model.embed_tokens.weight" if tied else "lm_head.weight"]
    for i, layer in enumerate(decoder.layer):
        part = f"model.layers.{i}"
        attention, ffn = layer.self_attention, layer.ffn
        attention.layer_norm.gamma = model[f"{part}.input_layernorm.weight"]
        ffn.layer_norm.gamma = model[f"{part}.post_attention_layernorm.weight"]
        attention.linear[0].weight = np.concatenate(
            [model[f"{part}.self_attn.{x}_proj.weight"] for x in "qkv"]
        )
        attention.linear[1].weight = model[f"{part}.self_attn.o_proj.weight"]
        ffn.linear_0.weight = model[f"{part}.mlp.gate_proj.weight"]
        ffn.linear_0_noact.weight = model[f"{part}.mlp.up_proj.weight"]
        ffn.linear_1.weight = model[f"{part}.mlp.down_proj.weight"]
        if scaling:
            attention.rotary_low_freq_factor = np.float32(scaling["low_freq_factor"])
            attention.rotary_high_freq_factor = np.float32(scaling["high_freq_factor"])
    tokens = [str(i) for i in range(config["vocab_size"] - 1)] + [_END]
    spec.register_vocabulary(tokens)
    spec.config.bos_token = spec.config.unk_token = tokens[0]
    spec.config.eos_token = _END
    spec.config.layer_norm_epsilon = config["rms_norm_eps"]
    return spec
