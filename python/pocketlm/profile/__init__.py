"""Where the bytes and the time of a model go on this machine, and what other bits would change."""

import sys
import types
from typing import Any

from pocketlm.profile.profile import Profile, Total
from pocketlm.profile.rows import Cost, Row, Table
from pocketlm.profile.run import profile
from pocketlm.profile.whatif import WhatIf

__all__ = ["Cost", "Profile", "Row", "Table", "Total", "WhatIf", "profile"]


class _Package(types.ModuleType):
    """``pocketlm.profile(model)`` works although ``pocketlm.profile`` is a package."""

    def __call__(self, *args: Any, **kwargs: Any) -> Profile:
        return profile(*args, **kwargs)


sys.modules[__name__].__class__ = _Package
