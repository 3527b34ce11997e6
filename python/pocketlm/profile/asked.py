"""Kinds as a what-if names them: by name, or by bits, as palettize's ``--kinds`` takes them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pocketlm.errors import ParameterError
from pocketlm.kinds import BEST, BITS
from pocketlm.palettize.recipe import KINDS, Recipe, recipe_kinds

_BITS = {str(bits): kind for bits, kind in BEST.items()}


def asked_kinds(values: Mapping[str, Any], source: str) -> Recipe:
    """Names and kinds of a recipe of either form. A number stands for the best kind of so many bits.

    Raises:
        ParameterError: something in it is none of a recipe's; names it.
    """
    tensors = values.get("tensors")
    if "pocketlm_recipe" in values and isinstance(tensors, Mapping):
        return recipe_kinds({**values, "tensors": _by_name(tensors, source)}, source)
    return recipe_kinds(values if "pocketlm_recipe" in values else _by_name(values, source), source)


def _by_name(tensors: Mapping[str, Any], source: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tensors.items():
        if isinstance(value, Mapping):
            found[name] = {**value, "kind": _kind(name, value["kind"], source)} if "kind" in value else value
        else:
            found[name] = _kind(name, value, source)
    return found


def _kind(name: str, kind: Any, source: str) -> str:
    given = str(kind).strip() if isinstance(kind, str | int) and not isinstance(kind, bool) else ""
    given = _BITS.get(given, given)
    if given in KINDS:
        return given
    near = difflib.get_close_matches(given, KINDS, n=1)
    # Of several kinds of as many bits the best is what somebody means who names none of them.
    hint = f"; the nearest is {BEST[BITS[near[0]]] if near[0] in BITS else near[0]}" if near else ""
    bits = ", ".join(_BITS)
    raise ParameterError(
        f"{source}: {name!r:.200} is to be {kind!r:.60}; kinds are {', '.join(KINDS)}, or bits: {bits}{hint}"
    )
