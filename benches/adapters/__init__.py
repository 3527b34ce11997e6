"""The runtimes that ``benches/peers.py`` compares: one file each, found by its name.

To add one, write ``benches/adapters/<name>.py`` with a class ``Peer`` derived from
:class:`benches.adapters.base.Adapter`, and nothing else: the class says what to install, converts the
checkpoint, and generates tokens.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benches.adapters.base import Adapter

_MACHINERY = {"base", "environment", "worker", "gguf_file"}


def names() -> list[str]:
    """The runtimes that have an adapter."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _MACHINERY)


def adapter(name: str) -> Adapter:
    """A runtime's adapter; importing it needs nothing installed."""
    if name not in names():
        raise SystemExit(f"{name}: no such runtime; there are {', '.join(names())}")
    peer: Adapter = importlib.import_module(f"{__name__}.{name}").Peer()
    return peer
