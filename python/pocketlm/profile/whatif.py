"""What another choice of kinds would change: size, speed, energy and, where it is known, loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from pocketlm.errors import ParameterError
from pocketlm.kinds import PALETTES
from pocketlm.loading.files import as_path, read_json, write_whole
from pocketlm.palettize.recipe import KEEP, KINDS, Recipe, recipe_kinds, recipe_text
from pocketlm.palettize.tensors import palette_parts
from pocketlm.profile.names import with_choice
from pocketlm.profile.rows import Table
from pocketlm.profile.sensitivity import Sensitivities

KEPT_AS = "bf16"  # what "keep" is taken for where the source is not at hand
_DENSE_BYTES = {"f32": 4, "f16": 2, "bf16": 2}


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A tensor whose kind can be chosen.

    Attributes:
        name, shape: of the tensor; [outputs, inputs].
        ops: names of the operations that read it.
        projection: inside a layer, so that it counts in bits per weight of the projections.
        kind: what it is now.
        bytes: stored bytes as each kind.
        decode, prefill: predicted seconds of its products together, as each kind.
        kl: nats per token that each kind costs, where known.
    """

    name: str
    shape: tuple[int, int]
    ops: tuple[str, ...]
    projection: bool
    kind: str
    bytes: dict[str, int]
    decode: dict[str, float]
    prefill: dict[str, float]
    kl: dict[str, float]

    @property
    def elements(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def current(self) -> str:
        """The choice that leaves it as it is."""
        return self.kind if self.kind in PALETTES else KEEP

    def entry(self, kind: str) -> dict[str, Any]:
        """What a recipe says about it as that kind."""
        known = {"kl": float(f"{self.kl[kind]:.4g}")} if kind in self.kl else {}
        return {
            "kind": kind,
            "sites": list(self.ops),
            "shape": list(self.shape),
            **known,
            "bytes": self.bytes[kind],
            "microseconds": round(1e6 * self.decode[kind], 2),
        }


@dataclasses.dataclass(frozen=True)
class Base:
    """The model as it is: what does not depend on kinds, beside the whole.

    Attributes:
        bytes, parameters: of all tensors.
        other_bytes: of tensors that have no choice of kind (norms, biases).
        decode, prefill: seconds of a decode step and of the prompt's prefill.
        prompt: tokens of that prompt.
        watts: power while decode steps run.
    """

    bytes: int
    parameters: int
    other_bytes: int
    decode: float
    prefill: float
    prompt: int
    watts: float


@dataclasses.dataclass(frozen=True, repr=False)
class WhatIf:
    """Predictions for a recipe.

    Attributes:
        recipe: the kind of every matrix.
        tensors: the same with what each choice costs, as :func:`pocketlm.palettize.recipe.recipe_text` takes
            it.
        changed: tensors whose kind differs from now, with both kinds.
        bytes: of all weights, codebooks and scales included; exact.
        bits_per_weight_projections, bits_per_weight_all: as ``pocketlm inspect`` counts; exact.
        decode_seconds, prefill_seconds: of a decode step, and of the prompt's prefill.
        decode_tokens_per_second, prefill_tokens_per_second: of the engine.
        joules_per_token: of decoding.
        kl: nats per token by which the model departs from its source: the sum over its tensors, as far as
            small damages add up; ``None`` if one is not known.
        kl_unknown: tensors whose sensitivity to their kind is not known.
    """

    recipe: Recipe
    tensors: dict[str, dict[str, Any]]
    changed: dict[str, tuple[str, str]]
    bytes: int
    bits_per_weight_projections: float
    bits_per_weight_all: float
    decode_seconds: float
    prefill_seconds: float
    decode_tokens_per_second: float
    prefill_tokens_per_second: float
    joules_per_token: float
    kl: float | None
    kl_unknown: tuple[str, ...]

    def __repr__(self) -> str:
        kl = "KL not known" if self.kl is None else f"KL {self.kl:.4f} nats a token"
        return (
            f"WhatIf({len(self.changed)} of {len(self.recipe)} tensors changed: {self.bytes:,} bytes, "
            f"{self.bits_per_weight_projections:.2f} bits per weight ({self.bits_per_weight_all:.2f} of "
            f"everything), decode {self.decode_tokens_per_second:,.0f} tokens/s, "
            f"prefill {self.prefill_tokens_per_second:,.0f} tokens/s, {kl})"
        )

    @property
    def kl_told(self) -> str:
        """The divergence in words; where it is not known, the kinds that were not measured."""
        if self.kl is not None:
            return f"{self.kl:.4f} nats a token"
        missing = [self.recipe[name] for name in self.kl_unknown]
        kinds = ", ".join(f"{kind} of {missing.count(kind)}" for kind in KINDS if kind in missing)
        plural = "" if len(missing) == 1 else "s"
        return f"not known: no sensitivity to {kinds} tensor{plural}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return dataclasses.asdict(self)

    @property
    def predicted(self) -> dict[str, float]:
        """The figures that a recipe's header has."""
        found = {
            "bytes": self.bytes,
            "bits_per_weight_projections": self.bits_per_weight_projections,
            "bits_per_weight_all": self.bits_per_weight_all,
            "tokens_per_second": self.decode_tokens_per_second,
            "kl": self.kl,
        }
        return {key: value for key, value in found.items() if value is not None}

    def save(self, path: str | PathLike[str]) -> Path:
        """Writes the recipe, with what each choice costs, as a JSON file for ``pocketlm palettize --recipe``
        and ``pocketlm profile --what-if``.

        Raises:
            StorageError, MissingFileError: it cannot be written.
        """
        target = as_path(path, "path")
        write_whole(target, recipe_text(self.tensors, {"predicted": self.predicted}))
        return target


def stored_bytes(shape: tuple[int, int], kind: str, source: str) -> int:
    """Bytes of a matrix as a kind; ``keep`` is its own dense kind, or else 16 bits."""
    if kind in PALETTES:
        return sum(part.nbytes for part in palette_parts("", kind, shape))
    return shape[0] * shape[1] * _DENSE_BYTES[source if source in _DENSE_BYTES else KEPT_AS]


def resolve(
    changes: Mapping[str, Any] | str | PathLike[str], matrices: Iterable[Matrix], table: Table
) -> Recipe:
    """The recipe that changes give: a mapping whose keys are names of operations, sites or tensors, with
    wildcards, or a recipe's file. The last one that matches a tensor decides.

    Raises:
        ParameterError: a pattern matches nothing, or nothing that has a kind; a kind is unknown.
        MissingFileError, FileFormatError: the file cannot be read, or names something twice.
    """
    source = "changes"
    if isinstance(changes, str | PathLike):
        source = str(changes)
        changes = read_json(as_path(changes, "changes"), unique=True)
    if not isinstance(changes, Mapping):
        raise ParameterError(f"changes: must map names to kinds, not {type(changes).__name__}")
    known = {op: matrix for matrix in matrices for op in matrix.ops}
    recipe = {matrix.name: matrix.current for matrix in known.values()}
    for pattern, kind in recipe_kinds(changes, source).items():
        recipe.update(
            (known[row.name].name, kind) for row in with_choice(pattern, kind, table, known, source)
        )
    return recipe


def predict(recipe: Recipe, matrices: Sequence[Matrix], base: Base) -> WhatIf:
    """What the model would be like with the kinds of a recipe."""
    size, inner_bytes, inner_elements = base.other_bytes, 0, 0
    decode, prefill = base.decode, base.prefill
    kl, unknown_kl, changed = 0.0, [], {}
    for matrix in matrices:
        kind = recipe[matrix.name]
        size += matrix.bytes[kind]
        if matrix.projection:
            inner_bytes += matrix.bytes[kind]
            inner_elements += matrix.elements
        if kind != matrix.current:
            changed[matrix.name] = (matrix.current, kind)
            decode += matrix.decode[kind] - matrix.decode[matrix.current]
            prefill += matrix.prefill[kind] - matrix.prefill[matrix.current]
        if kind in matrix.kl:
            kl += matrix.kl[kind]
        else:
            unknown_kl.append(matrix.name)
    return WhatIf(
        recipe=dict(recipe),
        tensors={matrix.name: matrix.entry(recipe[matrix.name]) for matrix in matrices},
        changed=changed,
        bytes=size,
        bits_per_weight_projections=8 * inner_bytes / inner_elements if inner_elements else 0.0,
        bits_per_weight_all=8 * size / base.parameters if base.parameters else 0.0,
        decode_seconds=decode,
        prefill_seconds=prefill,
        decode_tokens_per_second=1 / decode,
        prefill_tokens_per_second=base.prompt / prefill,
        joules_per_token=decode * base.watts,
        kl=None if unknown_kl else kl,
        kl_unknown=tuple(unknown_kl),
    )


def known_losses(sensitivities: Sensitivities, name: str) -> dict[str, float]:
    """Losses of a tensor by kind; to keep it loses nothing, if its others are known."""
    found = sensitivities.get(name, {})
    return {**found, KEEP: found.get(KEEP, 0.0)} if found else {}
