"""Opens models: a Hugging Face directory, pocketlm's own directory, or a hub id. One file per container.

Names are imported when first used: a tokenizer's tables are read while the rest is still being imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pocketlm.loading.model import LoadedModel, open_model

__all__ = ["LoadedModel", "open_model"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pocketlm.loading import model

    globals()[name] = value = getattr(model, name)
    return value


def __dir__() -> list[str]:
    return __all__
