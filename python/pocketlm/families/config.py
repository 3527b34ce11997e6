"""Reads a ``config.json`` with every key accounted for.

A family takes the keys that it understands. What is left over must be known to be harmless; anything else could change
the numerics in silence and is refused (:class:`pocketlm.errors.ConfigError`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pocketlm.errors import ConfigError

# Keys that do not change the logits of a causal language model at inference.
HARMLESS = frozenset(
    """_name_or_path architectures attention_dropout auto_map begin_suppress_tokens bos_token_id chunk_size_feed_forward
    decoder_start_token_id dtype eos_token_id finetuning_task forced_bos_token_id forced_eos_token_id hidden_dropout
    id2label initializer_range is_decoder label2id license max_new_tokens model_type name output_attentions
    output_hidden_states pad_token_id pocketlm prefix pretraining_tp problem_type resid_pdrop embd_pdrop attn_pdrop
    return_dict return_dict_in_generate sep_token_id task_specific_params tokenizer_class torch_dtype torchscript
    transformers_version use_cache use_flash_attn _attn_implementation attn_implementation""".split()
)

# No tensor of a model that fits a CPU has a dimension near this; a larger one is a damaged or hostile file.
MAX_SIZE = 1 << 24
MAX_LAYERS = 1 << 12

_MISSING = object()


class Config:
    """A parsed ``config.json``, by typed and range-checked access. ``source`` names the file in error messages."""

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
        return ConfigError(f"{self.source}: {key!r} {problem}")

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
            raise self.error(key, f"must be an integer, not {value!r:.60}")
        if not 0 < value <= most:
            raise self.error(key, f"must be from 1 to {most}, not {value:.6g}" if value > 0 else f"must be positive, not {value}")
        return value

    def number(self, key: str, default: Any = _MISSING) -> float:
        """A positive finite number."""
        value = self.raw(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(key, f"must be a number, not {value!r:.60}")
        if not (value > 0 and math.isfinite(value)):
            raise self.error(key, f"must be positive and finite, not {value}")
        return float(value)

    def flag(self, key: str, default: Any = _MISSING) -> bool:
        """A boolean."""
        value = self.raw(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"must be true or false, not {value!r:.60}")
        return value

    def choice(self, key: str, options: Mapping[str, Any], default: Any = _MISSING) -> Any:
        """The option that a string selects."""
        value = self.raw(key, default)
        if not isinstance(value, str) or value not in options:
            raise self.error(key, f"is {value!r:.60}; supported: {', '.join(sorted(options))}")
        return options[value]

    def expect(self, key: str, value: Any) -> None:
        """Accepts the key only with this value (or absent)."""
        if self.raw(key, value) != value:
            raise self.error(key, f"is {self._values[key]!r:.60}; only {value!r} is supported")

    def ignore(self, *keys: str) -> None:
        """Marks keys that the family knows not to matter."""
        self._taken.update(keys)

    def finish(self) -> None:
        """Refuses keys that nothing accounted for.

        Raises:
            ConfigError: a key is unknown and neither null nor false.
        """
        for key, value in self._values.items():
            if key not in self._taken and key not in HARMLESS and value is not None and value is not False:
                raise self.error(key, f"is not supported (value {value!r:.60}); it could change the results")


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
