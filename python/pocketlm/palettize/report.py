"""What a palettization did, in figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pocketlm.palettize.plan import Plan
from pocketlm.palettize.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class TensorReport:
    """One tensor; ``relative_error`` is weighted squared error over weighted energy, 0 where copied."""

    name: str
    kind: str
    shape: tuple[int, ...]
    bytes: int
    relative_error: float
    is_projection: bool

    @property
    def elements(self) -> int:
        product = 1
        for size in self.shape:
            product *= size
        return product


@dataclasses.dataclass(frozen=True)
class Report:
    """The outcome of :func:`pocketlm.palettize`: where, by which recipe, each tensor, both bit figures, and
    the plan with what was predicted and measured."""

    path: Path
    recipe: Recipe
    tensors: tuple[TensorReport, ...]
    bits_per_weight_projections: float
    bits_per_weight_all: float
    seconds: float
    resumed: int
    plan: Plan

    @property
    def parameters(self) -> int:
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)


def bits_per_weight(tensors: list[TensorReport]) -> tuple[float, float]:
    """Stored bits per weight of the projections and of everything; codebooks and scales are counted."""

    def average(chosen: list[TensorReport]) -> float:
        elements = sum(tensor.elements for tensor in chosen)
        return 8 * sum(tensor.bytes for tensor in chosen) / elements if elements else 0.0

    return average([tensor for tensor in tensors if tensor.is_projection]), average(tensors)
