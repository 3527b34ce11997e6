"""Rotary frequencies with the scalings of the published models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pocketlm.errors import ConfigError
from pocketlm.families.config import Config
from pocketlm.graph import Rotary


def base_frequencies(theta: float, dim: int) -> list[float]:
    """``theta ** (-2i / dim)`` for each of the dim / 2 pairs, in radians per token (arXiv 2104.09864, §3.2.2)."""
    return [theta ** (-2 * i / dim) for i in range(dim // 2)]


def linear(frequencies: list[float], scaling: Config) -> list[float]:
    """Position interpolation (arXiv 2306.15595): every frequency divided by ``factor``."""
    factor = scaling.number("factor")
    return [f / factor for f in frequencies]


def llama3(frequencies: list[float], scaling: Config) -> list[float]:
    """Llama 3.1: long wavelengths are divided by ``factor``, short ones kept, those between blended.

    With wavelength l and the context c that the model was first trained on: l < c / high is kept, l > c / low divided,
    and between them the share kept is (c / l - low) / (high - low).
    """
    factor = scaling.number("factor")
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    context = scaling.size("original_max_position_embeddings")
    if high <= low:
        raise scaling.error("high_freq_factor", f"must be above low_freq_factor ({low}), not {high}")
    result = []
    for frequency in frequencies:
        kept = (context * frequency / (2 * math.pi) - low) / (high - low)
        kept = min(max(kept, 0.0), 1.0)
        result.append(frequency * (kept + (1 - kept) / factor))
    return result


SCALINGS = {"default": lambda frequencies, _: frequencies, "linear": linear, "llama3": llama3}


def rotary(config: Config, dim: int, default_theta: float = 10000.0) -> Rotary:
    """The rotary embedding of a Hugging Face configuration.

    Reads ``rope_theta`` with ``rope_scaling``, or ``rope_parameters`` which holds both.

    Raises:
        ConfigError: an unknown kind of scaling, or an unknown or missing parameter of it.
    """
    if dim % 2:
        raise ConfigError(f"{config.source}: rotary embeddings need an even head size, not {dim}")
    theta = config.number("rope_theta", default_theta)
    scaling = config.raw("rope_scaling", None)
    parameters = config.raw("rope_parameters", None)
    if parameters is not None:
        if not isinstance(parameters, Mapping):
            raise config.error("rope_parameters", "must be an object")
        scaling = dict(parameters)
        theta = Config(scaling, f"{config.source}: rope_parameters").number("rope_theta", theta)
        scaling.pop("rope_theta", None)
    frequencies = base_frequencies(theta, dim)
    if scaling is None:
        return Rotary(tuple(frequencies))
    if not isinstance(scaling, Mapping):
        raise config.error("rope_scaling", "must be an object")
    return Rotary(tuple(scaled(frequencies, scaling, config.source)))


def scaled(frequencies: list[float], scaling: Mapping[str, Any], source: str) -> list[float]:
    """Frequencies after the scaling that an object with ``rope_type`` (once ``type``) describes."""
    inner = Config(scaling, f"{source}: rope_scaling")
    kind = "rope_type" if "rope_type" in inner else "type"
    inner.ignore("type", "rope_type")
    result: list[float] = inner.choice(kind, SCALINGS)(frequencies, inner)
    inner.finish()
    return result
