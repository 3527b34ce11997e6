"""Random adapters for tests, written with NumPy alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from checkpoints import safetensors_bytes
from pocketlm.families import build_graph

Pair = tuple[NDArray[np.float32], NDArray[np.float32]]


def pairs(config: dict[str, Any], rank: int = 5, seed: int = 3) -> dict[str, Pair]:
    """A and B for every projection of a configuration, by the weight's name; ranks grow with the site."""
    rng = np.random.default_rng(seed)
    found: dict[str, Pair] = {}
    for op in build_graph(config).linears():
        if op.name == "head":
            continue
        outputs, inputs = op.weight.shape
        r = rank + len(found) % 3
        a, b = rng.standard_normal((r, inputs)) / np.sqrt(inputs), rng.standard_normal((outputs, r)) / r
        found[op.weight.name] = a.astype(np.float32), b.astype(np.float32)
    return found


def tensors(found: dict[str, Pair], dtype: Any = np.float16) -> dict[str, NDArray[Any]]:
    """As PEFT names them on disk."""
    result = {}
    for name, (a, b) in found.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        result[f"{module}.lora_A.weight"], result[f"{module}.lora_B.weight"] = (
            a.astype(dtype),
            b.astype(dtype),
        )
    return result


def config_of(found: dict[str, Pair], **changes: Any) -> dict[str, Any]:
    """An adapter_config.json as PEFT 0.17 writes it."""
    modules = {name.removesuffix(".weight"): len(a) for name, (a, _) in found.items()}
    return {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": "base",
        "bias": "none",
        "corda_config": None,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 8,
        "lora_bias": False,
        "lora_dropout": 0.05,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "qalora_group_size": 16,
        "r": 5,
        "rank_pattern": modules,
        "revision": None,
        "target_modules": sorted(modules),
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
        **changes,
    }


def write(model: Path, found: dict[str, Pair], dtype: Any = np.float16, **changes: Any) -> Path:
    """An adapter in a model's directory, as PEFT would leave it."""
    directory = model / "adapters" / "recovery"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(config_of(found, **changes)))
    weights = safetensors_bytes(tensors(found, dtype), {"format": "pt"})
    (directory / "adapter_model.safetensors").write_bytes(weights)
    return directory
