"""Rotary frequencies with the scalings of the published models."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from pocketlm.checks import shown
from pocketlm.families.config import Config
from pocketlm.graph import Rotary


def base_frequencies(theta: float, dim: int) -> list[float]:
    """``theta ** (-2i / dim)`` for each of the dim / 2 pairs, in radians per token (arXiv 2104.09864)."""
    return [theta ** (-2 * i / dim) for i in range(dim // 2)]


def linear(frequencies: list[float], scaling: Config) -> list[float]:
    """Position interpolation (arXiv 2306.15595): every frequency divided by ``factor``."""
    factor = scaling.number("factor")
    return [f / factor for f in frequencies]


def llama3(frequencies: list[float], scaling: Config) -> list[float]:
    """Llama 3.1: long wavelengths are divided by ``factor``, short ones kept, those between blended.

    With wavelength l and the context c that the model was first trained on: l < c / high is kept, l > c / low
    divided, and between them the share kept is (c / l - low) / (high - low).
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


Scaling = Callable[[list[float], Config], list[float]]

SCALINGS: dict[str, Scaling] = {
    "default": lambda frequencies, _: frequencies,
    "linear": linear,
    "llama3": llama3,
}


def rotary(config: Config, dim: int, theta_key: str = "rope_theta", default_theta: float = 10000.0) -> Rotary:
    """The rotary embedding of a Hugging Face configuration.

    Reads ``theta_key`` with ``rope_scaling``, or ``rope_parameters`` which holds both in newer
    configurations.

    Raises:
        ConfigError: an odd ``dim``; an unknown kind of scaling; an unknown, missing or contradictory
        parameter.
    """
    if dim % 2:
        raise config.error("head_dim", f"must be even for rotary embeddings, not {dim}")
    theta = config.number(theta_key, default_theta)
    key = "rope_parameters" if "rope_parameters" in config else "rope_scaling"
    scaling = config.raw(key, {})
    if not isinstance(scaling, Mapping):
        raise config.error(key, f"must be an object, not {shown(scaling)}")
    if key == "rope_parameters" and config.raw("rope_scaling", scaling) != scaling:
        raise config.error("rope_scaling", "contradicts 'rope_parameters'")
    inner = Config(scaling, f"{config.source}: {key}")
    if key == "rope_parameters":
        stated = inner.number(theta_key, theta)
        if theta_key in config and stated != theta:
            raise config.error(theta_key, f"is {theta}, but 'rope_parameters' says {stated}")
        theta = stated
    frequencies = scaled(base_frequencies(theta, dim), inner)
    if not all(map(math.isfinite, frequencies)):
        raise config.error(theta_key, f"({theta}) with {key!r} gives frequencies that are not finite")
    return Rotary(tuple(frequencies))


def scaled(frequencies: list[float], scaling: Config) -> list[float]:
    """Frequencies after the scaling that ``rope_type`` (once ``type``) names; unchanged without one."""
    key = "type" if "type" in scaling and "rope_type" not in scaling else "rope_type"
    scaling.ignore("type")
    result: list[float] = scaling.choice(key, SCALINGS, "default")(frequencies, scaling)
    scaling.finish()
    return result
