"""Opens models: a Hugging Face directory, pocketlm's own directory, or a hub id. One file per container."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pocketlm.loading.model import LoadedModel, open_model

__all__ = ["LoadedModel", "open_model"]


def __getattr__(name: str) -> Any:
    # When first asked for: a tokenizer is read while all that reads the rest is still being imported.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module("pocketlm.loading.model"), name)
    globals()[name] = value
    return value
