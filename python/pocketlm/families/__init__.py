"""Model families: one file per ``model_type``, each a function from ``config.json`` to a graph.

A family registers itself with :func:`family`; a third party's does so the same way, and names its module as
an entry point of the group :data:`ENTRY_POINTS`, under the model type. See ``docs/adding/family.md``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from pocketlm.checks import shown
from pocketlm.families.config import Config
from pocketlm.graph import Graph

Builder = Callable[[Config], Graph]

ENTRY_POINTS = "pocketlm.families"

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
    """The model types that :func:`build_graph` knows without looking at what else is installed."""
    return sorted({*_built_in, *_builders})


def build_graph(values: Mapping[str, Any], source: str = "config.json") -> Graph:
    """The graph of a parsed ``config.json``.

    Raises:
        ConfigError: the model type is unknown, its entry point cannot be loaded or its family yields no
            graph, two operations have the same name, or a key is missing, malformed, or unknown and not
            harmless.
    """
    config = Config(values, source)
    model_type = config.raw("model_type")
    if not isinstance(model_type, str):
        raise config.error("model_type", f"must be a string, not {shown(model_type)}")
    if model_type not in _builders and model_type in _built_in:
        importlib.import_module(f"{__name__}.{_built_in[model_type]}")
    if model_type not in _builders:
        _find(model_type, config)
    for key in ("quantization_config", "quantization"):
        if key in config:
            raise config.error(key, "says that the weights are already quantized; give the 16-bit model")
    graph = _builders[model_type](config)
    if not isinstance(graph, Graph):
        problem = f"is {shown(model_type)}, whose family returned {shown(graph)} rather than a Graph"
        raise config.error("model_type", problem)
    config.finish()
    return graph


def _find(model_type: str, config: Config) -> None:
    """Imports the family that another package has for a model type.

    Raises:
        ConfigError: there is none, or not one alone, or its entry point cannot be loaded or registers none.
    """
    # Imported here, so that models of known types do not wait for it.
    from importlib import metadata

    try:
        found = metadata.entry_points(group=ENTRY_POINTS)
    except Exception as error:  # metadata of other packages, damaged in any way
        raise config.error("model_type", f"{shown(model_type)}: {ENTRY_POINTS}: {error!r:.200}") from error
    points = sorted({(point.name, point.value): point for point in found if point.name == model_type}.items())
    if not points:
        supported = ", ".join(sorted({*model_types(), *found.names}))
        raise config.error("model_type", f"{shown(model_type)} is not supported; supported: {supported}")
    names = " and ".join(f"{name} = {value}" for (name, value), _ in points)
    entry = f"{shown(model_type)}: the entry point {names:.200} of {ENTRY_POINTS}"
    if len(points) > 1:
        raise config.error("model_type", f"{entry}: only one can be installed")
    try:
        points[0][1].load()
    except Exception as error:  # another package's code
        _builders.pop(model_type, None)  # registered before the module failed
        raise config.error("model_type", f"{entry} failed: {error!r:.200}") from error
    if model_type not in _builders:
        raise config.error("model_type", f"{entry} registers no such family")
