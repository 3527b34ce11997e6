"""Makes palettized models: codes of 2 to 8 bits into small codebooks, chosen to lose little."""

import sys
import types
from typing import Any

from pocketlm.palettize.plan import Plan
from pocketlm.palettize.report import Report, TensorReport
from pocketlm.palettize.run import palettize
from pocketlm.palettize.work import plan

__all__ = ["Plan", "Report", "TensorReport", "palettize", "plan"]


class _Package(types.ModuleType):
    """``pocketlm.palettize(src, dst)`` works although ``pocketlm.palettize`` is a package."""

    def __call__(self, *args: Any, **kwargs: Any) -> Report:
        return palettize(*args, **kwargs)


sys.modules[__name__].__class__ = _Package
