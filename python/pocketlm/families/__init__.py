"""Model families: one file per ``model_type``, each a function from ``config.json`` to a graph.

A family registers itself with :func:`family`; a third party's does so the same way. See
``docs/adding/family.md``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from pocketlm.checks import shown
from pocketlm.families.config import Config
from pocketlm.graph import Graph

Builder = Callable[[Config], Graph]

_builders: dict[str, Builder] = {}
_built_in = {"llama": "llama", "openelm": "openelm"}  # model_type -> module of this package


def family(*model_types: str) -> Callable[[Builder], Builder]:
    """Registers a function as the builder of these model types."""

    def register(builder: Builder) -> Builder:
        for model_type in model_types:
            _builders[model_type] = builder
        return builder

    return register


def model_types() -> list[str]:
    """The model types that :func:`build_graph` knows."""
    return sorted({*_built_in, *_builders})


def build_graph(values: Mapping[str, Any], source: str = "config.json") -> Graph:
    """The graph of a parsed ``config.json``.

    Raises:
        ConfigError: the model type is unknown, or a key is missing, malformed, or unknown and not harmless.
    """
    config = Config(values, source)
    model_type = config.raw("model_type")
    if not isinstance(model_type, str):
        raise config.error("model_type", f"must be a string, not {shown(model_type)}")
    if model_type not in _builders and model_type in _built_in:
        importlib.import_module(f"{__name__}.{_built_in[model_type]}")
    if model_type not in _builders:
        supported = ", ".join(model_types())
        raise config.error("model_type", f"{shown(model_type)} is not supported; supported: {supported}")
    for key in ("quantization_config", "quantization"):
        if key in config:
            raise config.error(key, "says that the weights are already quantized; give the 16-bit model")
    graph = _builders[model_type](config)
    config.finish()
    return graph
