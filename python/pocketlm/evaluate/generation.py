"""A task's generation arguments, as lm-evaluation-harness gives them, as sampling parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pocketlm.checks import shown
from pocketlm.errors import ParameterError
from pocketlm.generate.params import MAX_STOP_LENGTH, MAX_STOPS, SamplingParams

MAX_GEN_TOKS = 256  # where a task does not say
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = ("top_k", "top_p", "min_p", "repetition_penalty")


def generation(arguments: Mapping[str, Any], seed: int) -> tuple[SamplingParams, list[str]]:
    """Sampling parameters and stop strings of a task's generation arguments.

    Raises:
        ParameterError: one is unknown, or its value of the wrong type or out of range; names it.
    """
    if not isinstance(arguments, Mapping):
        raise ParameterError(
            f"generation arguments: must be a mapping of names to values, not {shown(arguments)}"
        )
    left = dict(arguments)
    until = _until(left.pop("until", None))
    lengths = [_length(name, left.pop(name, None)) for name in _LENGTHS]
    length = next((value for value in lengths if value is not None), MAX_GEN_TOKS)
    temperature = left.pop("temperature", None)
    sampled = left.pop("do_sample", None)
    if sampled is None:
        sampled = bool(temperature)
    elif not isinstance(sampled, bool):
        raise ParameterError(f"do_sample: must be true or false, not {shown(sampled)}")
    # Sampling without a temperature is at 1, as in the model's own distribution.
    chosen = (1.0 if temperature is None else temperature) if sampled else 0.0
    if left.pop("num_beams", 1) != 1:
        raise ParameterError("num_beams: only 1 is supported")
    options = {name: left.pop(name) for name in _SAMPLING if left.get(name) is not None}
    left = {name: value for name, value in left.items() if value is not None and name not in _SAMPLING}
    if left:
        raise ParameterError(f"{min(map(str, left)):.60}: unknown generation argument")
    # What is left open is as the model's generation_config.json has it, there as here.
    # More or longer strings than the engine looks for end nothing early; the text is cut at all of them.
    stop = tuple(text for text in until if len(text) <= MAX_STOP_LENGTH)[:MAX_STOPS]
    params = SamplingParams(max_tokens=length, temperature=chosen, stop=stop, seed=seed, **options)
    return params, until


def _until(value: Any) -> list[str]:
    """The strings at which to stop; empty ones stop nothing."""
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list | tuple | set) or not all(isinstance(text, str) for text in texts):
        raise ParameterError(f"until: must be a string or a list of strings, not {shown(value)}")
    return [text for text in texts if text]


def _length(name: str, value: Any) -> int | None:
    """A number of tokens, which tasks and command lines also write as ``"32"`` or ``32.0``."""
    if value is None:
        return None
    try:
        number = None if isinstance(value, bool) else int(value)
        whole = number is not None and (isinstance(value, str) or number == value)
    except (TypeError, ValueError, OverflowError):
        number, whole = None, False
    if number is None or not whole or not 1 <= number < 1 << 31:
        raise ParameterError(f"{name}: must be a whole number of tokens from 1 up, not {shown(value)}")
    return number
