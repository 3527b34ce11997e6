"""``target_modules`` of an adapter, as PEFT matches them with the modules of a model."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from pocketlm.adapters.pattern import Pattern
from pocketlm.errors import AdapterError

ALL_LINEAR = "all-linear"  # every projection but the head; PEFT takes it in any case
Targets = str | tuple[str, ...] | None


def covered(targets: Targets, modules: Collection[str], head: str | None, path: Path) -> set[str]:
    """The modules that an adapter's ``target_modules`` name.

    Args:
        targets: names of modules or what their names end in, after a dot; or a regular expression for whole
            names; or ``"all-linear"``; or ``None``, where the configuration says nothing: all.
        modules: of the model's products.
        head: the module of the product that yields the logits.
        path: of the configuration, for errors.

    Raises:
        AdapterError: a name, or the expression, matches no module.
        UnsupportedError: the expression uses what is not supported, or takes too long.
    """
    if targets is None:
        return set(modules)
    if isinstance(targets, str):
        if targets.lower() == ALL_LINEAR:
            return {module for module in modules if module != head}
        pattern = Pattern(targets, f"{path}: 'target_modules'")
        found = {module for module in modules if pattern.fullmatch(module)}
        if not found:
            raise AdapterError(f"{path}: target {targets!r:.200} matches no projection of this model")
        return found
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
