"""The recipe: which tensor becomes which kind. As JSON: ``{"tensor name": "p4", ...}``, with kinds by name or
by bits, or with what each choice costs."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import json
import re
from collections.abc import Mapping
from os import PathLike
from typing import Any

from pocketlm._core import WeightStore
from pocketlm.checks import shown
from pocketlm.errors import ParameterError, UnsupportedError
from pocketlm.graph import Embed, Graph, Linear
from pocketlm.kinds import BEST, BITS, PALETTES
from pocketlm.loading.check import stored_name
from pocketlm.loading.files import as_path, read_json
from pocketlm.near import nearest

KEEP = "keep"  # stay as in the source
KINDS = (*PALETTES, KEEP)
_BY_BITS = {str(bits): kind for bits, kind in BEST.items()}

VERSION = 1
_HEADER = {"pocketlm_recipe", "model", "budgets", "predicted", "measured", "tensors"}
_FIELDS = {"kind", "sites", "shape", "kl", "estimated", "bytes", "microseconds"}

Recipe = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A matrix that can be palettized: ``shape`` is [outputs, inputs]; ``sites`` are the ops that read it."""

    name: str
    shape: tuple[int, int]
    transposed: bool
    is_embedding: bool
    sites: tuple[str, ...]

    @property
    def elements(self) -> int:
        return self.shape[0] * self.shape[1]


def candidates(graph: Graph, store: WeightStore) -> list[Candidate]:
    """The matrices of a model in order of execution: projections, embeddings and the head.

    The head counts as an embedding: tied it is one, untied it is as sensitive.

    Raises:
        UnsupportedError: a weight is palettized already.
    """
    found: dict[str, Candidate] = {}
    for op in graph.ops:
        if not isinstance(op, Linear | Embed):
            continue
        name = stored_name(store, op.weight)
        if store.info(name).kind in PALETTES:
            raise UnsupportedError(f"tensor {name!r} is palettized already; palettize from the 16-bit model")
        old = found.get(name)
        outputs, inputs = op.weight.shape
        found[name] = Candidate(
            name,
            (outputs, inputs),
            op.weight.transposed,
            isinstance(op, Embed) or op.name == "head" or (old is not None and old.is_embedding),
            (*(old.sites if old else ()), op.name),
        )
    return list(found.values())


def read_recipe(recipe: Mapping[str, Any] | str | PathLike[str] | None, known: list[Candidate]) -> Recipe:
    """A recipe from a mapping or a JSON file; ``None`` is an empty one.

    Either ``{"name": "p4", ...}`` or what :func:`recipe_text` writes. Names are those of tensors, of
    operations (``layers.3.ffn.down``) or of sites (``ffn.down``), with the wildcards ``*``, ``?`` and
    ``[...]``; of several that match a tensor the last decides.

    Raises:
        ParameterError: a name matches no tensor of ``known``, or a kind is unknown; names it and what is
            near.
        MissingFileError, FileFormatError: the file cannot be read, or names something twice: which of the
            two decides would be left to chance.
    """
    if recipe is None:
        return {}
    values: Mapping[str, Any]
    values, source = (
        (recipe, "recipe")
        if isinstance(recipe, Mapping)
        else (read_json(as_path(recipe, "recipe"), unique=True), str(recipe))
    )
    found: Recipe = {}
    for name, kind in recipe_kinds(values, source).items():
        chosen = [tensor.name for tensor in known if _named(tensor, name)]
        if not chosen:
            hint = nearest(name, [site for tensor in known for site in tensor.sites], [t.name for t in known])
            raise ParameterError(
                f"{source}: {name!r:.200} is not a projection or embedding of this model{hint}"
            )
        found.update(dict.fromkeys(chosen, kind))
    return found


def recipe_kinds(values: Mapping[str, Any], source: str) -> Recipe:
    """Names and kinds of a recipe of either form; that its names exist is not looked at. A number stands for
    the best kind of so many bits.

    Raises:
        ParameterError: something in it is none of a recipe's; names it.
    """
    if "pocketlm_recipe" in values:
        _check_header(values, source)
        values = values["tensors"]
    found: Recipe = {}
    for name, value in values.items():
        if not isinstance(name, str):
            raise ParameterError(f"{source}: {shown(name)} is not a name or pattern")
        kind = value
        if isinstance(value, Mapping):
            if odd := set(value) - _FIELDS:
                raise ParameterError(
                    f"{source}: {name!r:.200} has the entry {min(map(shown, odd))}; "
                    f"there are {', '.join(sorted(_FIELDS))}"
                )
            kind = value.get("kind")
        found[name] = _kind(name, kind, source)
    return found


def _kind(name: str, kind: Any, source: str) -> str:
    """A kind by its name, or the best of so many bits."""
    given = kind_text(kind)
    given = _BY_BITS.get(given, given)
    if given in KINDS:
        return given
    near = difflib.get_close_matches(given, KINDS, n=1)
    # Of several kinds of as many bits the best is what somebody means who names none of them.
    hint = f"; the nearest is {BEST[BITS[near[0]]] if near[0] in BITS else near[0]}" if near else ""
    raise ParameterError(
        f"{source}: {name!r:.200} is to be {shown(kind)}; kinds are {', '.join(KINDS)}, "
        f"or bits: {', '.join(_BY_BITS)}{hint}"
    )


def kind_text(kind: Any) -> str:
    """What names a kind, or gives its bits, as text; empty for what can do neither."""
    if isinstance(kind, str):
        return kind.strip()
    return shown(kind) if isinstance(kind, int) and not isinstance(kind, bool) else ""


def _check_header(values: Mapping[str, Any], source: str) -> None:
    version = values["pocketlm_recipe"]
    if isinstance(version, bool) or version != VERSION:
        raise ParameterError(f"{source}: is a recipe of version {shown(version)}; known is {VERSION}")
    if odd := set(values) - _HEADER:
        raise ParameterError(
            f"{source}: has the entry {min(map(shown, odd))}; there are {', '.join(sorted(_HEADER))}"
        )
    if not isinstance(values.get("tensors"), Mapping):
        raise ParameterError(f"{source}: 'tensors' must be an object of names and kinds")


def _named(tensor: Candidate, pattern: str) -> bool:
    if tensor.name == pattern:
        return True
    sites = {re.sub(r"^layers\.\d+\.", "", site) for site in tensor.sites}
    names = {tensor.name, *tensor.sites, *sites}
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def recipe_json(recipe: Recipe) -> str:
    """The recipe as text, one tensor a line."""
    return json.dumps(recipe, indent=1) + "\n"


def recipe_text(tensors: Mapping[str, Mapping[str, Any]], header: Mapping[str, Any]) -> str:
    """A recipe with what was known when it was made, one tensor a line, to read and to edit.

    ``tensors`` maps names to ``kind`` and, where known, ``sites``, ``shape``, ``kl`` (nats per token that the
    kind costs; ``estimated`` where that was not measured itself), ``bytes`` and ``microseconds`` (of a decode
    step); ``header`` holds ``model``, ``budgets``, ``predicted`` and ``measured``, these two rounded to four
    digits. Only names and kinds matter to who applies it.
    """
    lines = [f' "pocketlm_recipe": {VERSION}']
    # What was asked for stands as it was given; what came of it is for people.
    short = {key: _rounded(value) for key, value in header.items() if key in ("predicted", "measured")}
    told = {**header, **short}
    lines += [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in told.items() if value]
    rows = [f"  {json.dumps(name)}: {json.dumps(dict(entry))}" for name, entry in tensors.items()]
    lines.append(' "tensors": {\n' + ",\n".join(rows) + "\n }")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {k: value if isinstance(value, int) else float(f"{value:.4g}") for k, value in figures.items()}
