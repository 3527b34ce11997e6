"""A model's own wishes for generation: ``generation_config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pocketlm.errors import ConfigError, ParameterError
from pocketlm.generate.params import SamplingParams
from pocketlm.records import dataclass

_TAKEN = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")

# Settings that change what is generated, and the values at which they do nothing. Any other value is refused:
# to drop it in silence would give other text than the model's makers meant.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "penalty_alpha": (0, 0.0),
    "typical_p": (1, 1.0),
    "epsilon_cutoff": (0, 0.0),
    "eta_cutoff": (0, 0.0),
    "no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1, 1.0),
    "bad_words_ids": ([],),
    "force_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "forced_decoder_ids": ([],),
    "sequence_bias": ({},),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1, 1.0),
    "watermarking_config": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "dola_layers": (),
    "encoder_no_repeat_ngram_size": (0,),
    "diversity_penalty": (0, 0.0),
    "num_return_sequences": (1,),
    "constraints": ([],),
    "max_time": (),
    "token_healing": (False,),
}


@dataclass(frozen=True)
class GenerationDefaults:
    """Sampling parameters that a model asks for, and the token ids that end its texts."""

    params: SamplingParams = SamplingParams()
    eos: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        values: Mapping[str, Any],
        config: Mapping[str, Any] | None = None,
        source: str = "generation_config.json",
    ) -> GenerationDefaults:
        """Reads a parsed ``generation_config.json``; ``source`` names it in errors.

        ``config`` is the parsed config.json, whose ``eos_token_id`` counts where generation_config.json has
        none.

        Raises:
            ConfigError: a value is malformed, or asks for something that is not supported. The message names
                the key.
        """
        for key, neutral in _NEUTRAL.items():
            value = values.get(key)
            if value is not None and not any(value == n and type(value) is type(n) for n in neutral):
                raise ConfigError(f"{source}: {key!r} is {value!r:.60}, which is not supported")
        changes = {key: values[key] for key in _TAKEN if values.get(key) is not None}
        if values.get("max_new_tokens") is not None:
            changes["max_tokens"] = values["max_new_tokens"]
        if values.get("stop_strings") is not None:
            changes["stop"] = values["stop_strings"]
        if not isinstance(values.get("do_sample", True), bool | None):
            raise ConfigError(f"{source}: 'do_sample' must be true or false, not {values['do_sample']!r:.60}")
        if values.get("do_sample") is False:
            changes["temperature"] = 0.0
        try:
            params = SamplingParams().replace(**changes)
        except ParameterError as problem:
            raise ConfigError(f"{source}: {problem}") from problem
        holder = values
        if values.get("eos_token_id") is None:
            source, holder = "config.json", config or {}
        return cls(params, _ids(source, holder.get("eos_token_id")))


def _ids(source: str, value: Any) -> tuple[int, ...]:
    items = value if isinstance(value, list) else [] if value is None else [value]
    if (
        any(isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < 1 << 32 for i in items)
        or len(items) > 256
    ):
        raise ConfigError(f"{source}: 'eos_token_id' must be a token id or a list of them, not {value!r:.60}")
    return tuple(items)
