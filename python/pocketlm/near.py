"""The name that a misspelt one was meant to be: what recipes, what-ifs and filters suggest."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_LAYER = re.compile(r"^layers\.\d+\.")


def nearest(name: object, operations: Iterable[str], tensors: Iterable[str] = ()) -> str:
    """The end of a message about a ``name`` that matches nothing: the operation, site, tensor or pattern
    nearest to it, or nothing where none is near."""
    given, known = str(name)[:200], _names(operations) | set(tensors)
    # Who writes a wildcard means several: patterns come first, names only where no pattern is near.
    patterns = {one for one in known if "*" in one}
    for some in (patterns, known) if set(given) & set("*?[") else (known - patterns, known):
        found = difflib.get_close_matches(given, sorted(some), n=1, cutoff=0.5)
        if found:
            return f"; the nearest is {found[0]!r}"
    return ""


def _names(operations: Iterable[str]) -> set[str]:
    """Operations, sites, and the patterns that stand for a site in all layers or for a part of a layer."""
    found = set()
    for operation in operations:
        site = _LAYER.sub("", operation)
        found |= {operation, site}
        part, dot, _ = site.rpartition(".")
        if dot:
            found.add(f"{part}.*")
        if site != operation:
            found |= {f"layers.*.{site}", f"{operation[: -len(site)]}*"}
            if dot:
                found |= {f"layers.*.{part}.*", f"{operation[: -len(site)]}{part}.*"}
    return found
