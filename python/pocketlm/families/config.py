"""Reads a ``config.json`` with every key accounted for.

A family takes the keys that it understands. What is left over must be known to be harmless; anything else
could change the numerics in silence and is refused (:class:`pocketlm.errors.ConfigError`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

from pocketlm.checks import shown
from pocketlm.errors import ConfigError

# Keys that do not change the logits of a causal language model at inference.
_HARMLESS = """
    _name_or_path architectures attention_dropout auto_map begin_suppress_tokens bos_token_id
    chunk_size_feed_forward decoder_start_token_id dtype eos_token_id finetuning_task forced_bos_token_id
    forced_eos_token_id hidden_dropout id2label initializer_range is_decoder label2id license max_new_tokens
    model_type name output_attentions output_hidden_states pad_token_id pocketlm prefix pretraining_tp
    problem_type resid_pdrop embd_pdrop attn_pdrop return_dict return_dict_in_generate sep_token_id
    task_specific_params tokenizer_class torch_dtype torchscript transformers_version use_cache use_flash_attn
    _attn_implementation attn_implementation unsloth_version bad_words_ids diversity_penalty do_sample
    early_stopping encoder_no_repeat_ngram_size length_penalty max_length exponential_decay_length_penalty
    min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores
    repetition_penalty suppress_tokens temperature top_k top_p typical_p use_bfloat16
"""
HARMLESS = frozenset(_HARMLESS.split())

# No model that fits a CPU comes near these; a larger size is a damaged or hostile file. Together they keep
# products of sizes far from the limits of 64 bits, and the graph itself small.
MAX_SIZE = 1 << 24
MAX_LAYERS = 1 << 10
MAX_HEAD_DIM = 1 << 10

_MISSING = object()


class Config:
    """A parsed ``config.json``, by typed and range-checked access. ``source`` names the file in errors."""

    def __init__(self, values: Mapping[str, Any], source: str = "config.json") -> None:
        if not isinstance(values, Mapping):
            raise ConfigError(f"{source}: expected a JSON object, found {type(values).__name__}")
        self._values = values
        self._taken: set[str] = set()
        self.source = source

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def error(self, key: str, problem: str) -> ConfigError:
        """An error about one key, to be raised."""
        return ConfigError(f"{self.source}: {shown(key)} {problem}")

    def raw(self, key: str, default: Any = _MISSING) -> Any:
        """The value of ``key`` as it stands; ``null`` counts as absent."""
        self._taken.add(key)
        value = self._values.get(key)
        if value is not None:
            return value
        if default is _MISSING:
            raise self.error(key, "is missing")
        return default

    def size(self, key: str, default: Any = _MISSING, most: int = MAX_SIZE) -> int:
        """A positive integer."""
        value = self.raw(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(key, f"must be an integer, not {shown(value)}")
        if not 0 < value <= most:
            raise self.error(key, f"must be from 1 to {most}, not {shown(value)}")
        return value

    def product(self, *keys_and_sizes: tuple[str, int]) -> int:
        """The product of sizes, which must itself be one. Each comes with the key that it stands under."""
        result = math.prod(size for _, size in keys_and_sizes)
        if result > MAX_SIZE:
            keys = " * ".join(repr(key) for key, _ in keys_and_sizes)
            raise ConfigError(f"{self.source}: {keys} must be at most {MAX_SIZE}, not {shown(result)}")
        return result

    def number(self, key: str, default: Any = _MISSING) -> float:
        """A positive finite number."""
        value = self.raw(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(key, f"must be a number, not {shown(value)}")
        if not 0 < value <= sys.float_info.max:  # an int may be beyond any float; NaN compares false
            raise self.error(key, f"must be positive and finite, not {shown(value)}")
        return float(value)

    def flag(self, key: str, default: Any = _MISSING) -> bool:
        """A boolean."""
        value = self.raw(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"must be true or false, not {shown(value)}")
        return value

    def choice(self, key: str, options: Mapping[str, Any], default: Any = _MISSING) -> Any:
        """The option that a string selects."""
        value = self.raw(key, default)
        if not isinstance(value, str) or value not in options:
            raise self.error(key, f"is {shown(value)}; supported: {', '.join(sorted(options))}")
        return options[value]

    def expect(self, key: str, value: Any) -> None:
        """Accepts the key only with this value (or absent)."""
        if self.raw(key, value) != value:
            raise self.error(key, f"is {shown(self._values[key])}; only {value!r} is supported")

    def ignore(self, *keys: str) -> None:
        """Marks keys that the family knows not to matter."""
        self._taken.update(keys)

    def finish(self) -> None:
        """Refuses keys that nothing accounted for.

        Raises:
            ConfigError: a key is unknown, and its value is not null, false or empty.
        """
        for key, value in self._values.items():
            absent = value is None or value is False or value in ("", [], {})
            if key not in self._taken and key not in HARMLESS and not absent:
                raise self.error(key, f"is not supported (value {shown(value)}); it could change the results")


ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
