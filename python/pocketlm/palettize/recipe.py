"""The recipe: which tensor becomes which kind. As JSON: ``{"tensor name": "p4", ...}``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from os import PathLike
from typing import Any

from pocketlm._core import WeightStore
from pocketlm.errors import ParameterError, UnsupportedError
from pocketlm.graph import Embed, Graph, Linear
from pocketlm.kinds import PALETTES
from pocketlm.loading.check import stored_name
from pocketlm.loading.files import as_path, read_json

KEEP = "keep"  # stay as in the source
KINDS = (*PALETTES, KEEP)

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


def read_recipe(recipe: Mapping[str, str] | str | PathLike[str] | None, known: list[Candidate]) -> Recipe:
    """A recipe from a mapping or a JSON file; ``None`` is an empty one.

    Raises:
        ParameterError: a tensor is not one of ``known``, or a kind is unknown; names it.
        MissingFileError, FileFormatError: the file cannot be read.
    """
    if recipe is None:
        return {}
    values: Mapping[str, Any]
    values, source = (
        (recipe, "recipe")
        if isinstance(recipe, Mapping)
        else (read_json(as_path(recipe, "recipe")), str(recipe))
    )
    names = {candidate.name for candidate in known}
    for name, kind in values.items():
        if name not in names:
            raise ParameterError(f"{source}: {name!r:.200} is not a projection or embedding of this model")
        if kind not in KINDS:
            raise ParameterError(
                f"{source}: {name!r:.200} is to be {kind!r:.60}; kinds are {', '.join(KINDS)}"
            )
    return dict(values)


def recipe_json(recipe: Recipe) -> str:
    """The recipe as text, one tensor a line."""
    return json.dumps(recipe, indent=1) + "\n"
