"""``adapter_config.json`` as PEFT writes it: what decides about numbers is honoured or refused by name."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

from pocketlm.adapters.targets import Targets
from pocketlm.errors import AdapterError, UnsupportedError
from pocketlm.loading.files import read_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"  # 16- or 32-bit, PEFT's own
WEIGHTS_INT8 = "adapter_model.int8.safetensors"  # palettes of kind p8; a name that PEFT does not open
SECTION = "pocketlm"
MAX_RANK = 4096
TILE_ROWS, GROUP = 16, 32  # p8 codes: rows of a tile, and inputs that it is rounded up to

# Keys that say how an adapter was trained, or where to: they do not change what a finished one computes.
_NEUTRAL = frozenset(
    (
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_dropout",
        "megatron_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    )
)
_KNOWN = frozenset(
    (
        "alpha_pattern",
        "bias",
        "lora_alpha",
        "peft_type",
        "r",
        "rank_pattern",
        "target_modules",
        "use_rslora",
        SECTION,
    )
)


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Ranks, scales and targets of an adapter.

    Attributes:
        rank, alpha: of modules that no pattern names.
        rank_pattern, alpha_pattern: of others; keys are regular expressions for the end of a module's name.
        rslora: the scale is alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732) rather than alpha / rank.
        int8: the weights are in :data:`WEIGHTS_INT8`.
        targets: the modules that it is for (see :func:`pocketlm.adapters.targets.covered`).
    """

    rank: int
    alpha: float
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    rslora: bool
    int8: bool
    targets: Targets

    def rank_of(self, module: str) -> int:
        """The rank of a module."""
        return int(_pattern(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        """What ``B(Ax)`` of a module is multiplied by."""
        rank = self.rank_of(module)
        return _pattern(self.alpha_pattern, module, self.alpha) / (math.sqrt(rank) if self.rslora else rank)


def _pattern(patterns: dict[str, Any], module: str, default: float) -> float:
    for key, value in patterns.items():
        if re.match(rf"(.*\.)?({key})$", module):
            return float(value)
    return default


def read_config(directory: Path) -> LoraConfig:
    """Reads the configuration of an adapter's directory.

    Raises:
        MissingFileError, StorageError: it cannot be read.
        AdapterError: it is damaged or a value makes no sense.
        UnsupportedError: it asks for what is not supported; names the option.
    """
    path = directory / CONFIG
    config = read_json(path, AdapterError)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedError(f"{path}: 'peft_type' is {kind!r:.60}; only LORA is supported")
    if config.get("bias") not in (None, "none"):
        raise UnsupportedError(f"{path}: 'bias' is {config['bias']!r:.60}; only none is supported")
    for key, value in config.items():
        if key not in _KNOWN and key not in _NEUTRAL and value not in (None, False, [], {}):
            raise UnsupportedError(f"{path}: {key!r:.60} is {value!r:.60}, which is not supported")
    rslora = config.get("use_rslora") or False
    if not isinstance(rslora, bool):
        raise AdapterError(f"{path}: 'use_rslora' must be true or false, not {rslora!r:.60}")
    return LoraConfig(
        rank=_rank(config.get("r"), path, "r"),
        alpha=_alpha(config.get("lora_alpha"), path, "lora_alpha"),
        rank_pattern={
            key: _rank(value, path, f"rank_pattern.{key}")
            for key, value in _patterns(config, "rank_pattern", path).items()
        },
        alpha_pattern={
            key: _alpha(value, path, f"alpha_pattern.{key}")
            for key, value in _patterns(config, "alpha_pattern", path).items()
        },
        rslora=rslora,
        int8=_is_int8(config.get(SECTION), path),
        targets=_targets(config.get("target_modules"), path),
    )


def _targets(value: Any, path: Path) -> Targets:
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise AdapterError(f"{path}: 'target_modules' must be a list of names or a string, not {value!r:.60}")
    return tuple(value)


def _is_int8(section: Any, path: Path) -> bool:
    if section is None:
        return False
    if not isinstance(section, dict) or section.get("weights") != WEIGHTS_INT8:
        raise AdapterError(f"{path}: {SECTION!r} must name the file of weights, {WEIGHTS_INT8}")
    return True


def _patterns(config: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        raise AdapterError(f"{path}: {key!r} must be an object")
    for pattern in patterns:
        # A module's name or the end of one: the regular expressions that PEFT would also take could run on
        # for ever.
        if not re.fullmatch(r"[\w.\\-]{1,500}", pattern):
            raise UnsupportedError(f"{path}: {key!r} has the key {pattern!r:.100}, which is no module's name")
        try:
            re.compile(pattern)
        except re.error as error:
            raise AdapterError(f"{path}: {key!r} has the key {pattern!r:.100} ({error})") from error
    return patterns


def _rank(value: Any, path: Path, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_RANK:
        raise AdapterError(f"{path}: {key!r:.200} must be a number from 1 to {MAX_RANK}, not {value!r:.60}")
    return value


def _alpha(value: Any, path: Path, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < abs(value) < 1e6:
        raise AdapterError(f"{path}: {key!r:.200} must be a number other than 0, not {value!r:.60}")
    return float(value)


def stored_bytes(rank: int, outputs: int, inputs: int, *, int8: bool) -> int:
    """Bytes of the two matrices of a term. int8 comes in whole tiles: ranks should be multiples of 16."""
    if not int8:
        return 2 * rank * (outputs + inputs)

    def packed(rows: int, cols: int) -> int:
        return -(-rows // TILE_ROWS) * TILE_ROWS * -(-cols // GROUP) * GROUP + 2 * rows

    return packed(rank, inputs) + packed(outputs, rank)


def config_json(ranks: dict[str, int], base: str, *, int8: bool) -> dict[str, Any]:
    """The configuration of an adapter whose scales are 1: ``ranks`` maps module to rank."""
    common = max(set(ranks.values()), key=list(ranks.values()).count)
    others = {module: rank for module, rank in ranks.items() if rank != common}
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": list(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }
    return {**config, SECTION: {"weights": WEIGHTS_INT8}} if int8 else config
