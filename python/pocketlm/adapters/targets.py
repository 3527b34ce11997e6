"""``target_modules`` of an adapter, as PEFT matches names with the modules of a model.

Where it is a regular expression, what the tensors are for decides alone: Python's matcher can be kept busy
for ever by an expression of a few characters, which a file must not do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from pocketlm.errors import AdapterError

ALL_LINEAR = "all-linear"  # every projection but the head; PEFT takes it in any case
Targets = str | tuple[str, ...] | None


def covered(targets: Targets, modules: Collection[str], head: str | None, path: Path) -> set[str]:
    """The modules that an adapter's ``target_modules`` name.

    Args:
        targets: names of modules or what their names end in, after a dot; or ``"all-linear"``; or another
            string, a regular expression, or ``None``, where the configuration says nothing: all.
        modules: of the model's products.
        head: the module of the product that yields the logits.
        path: of the configuration, for errors.

    Raises:
        AdapterError: a name matches no module.
    """
    if targets is None or isinstance(targets, str):
        whole = targets is None or targets.lower() != ALL_LINEAR
        return {module for module in modules if whole or module != head}
    # By a set of names: either side may have thousands.
    names, found, used = set(targets), set(), set()
    for module in modules:
        if matching := names.intersection(_endings(module)):
            found.add(module)
            used |= matching
    for name in targets:
        if name not in used:
            raise AdapterError(f"{path}: target {name!r:.200} has no place in this model")
    return found


def _endings(module: str) -> Iterator[str]:
    """``a.b.c``, ``b.c`` and ``c``."""
    while True:
        yield module
        _, dot, module = module.partition(".")
        if not dot:
            return
