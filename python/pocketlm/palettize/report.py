"""What a palettization did, in figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pocketlm.palettize.plan import Plan
from pocketlm.palettize.recipe import Recipe
from pocketlm.palettize.recovery import RecoveryReport


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
    the plan with what was predicted and measured, and what came of recovery, if that was asked for. ``bytes``
    and ``bits_per_weight_all`` include an adapter; ``parameters`` do not."""

    path: Path
    recipe: Recipe
    tensors: tuple[TensorReport, ...]
    bits_per_weight_projections: float
    bits_per_weight_all: float
    seconds: float
    resumed: int
    plan: Plan
    recovery: RecoveryReport | None = None

    @property
    def parameters(self) -> int:
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors) + (self.recovery.bytes if self.recovery else 0)


def bits_per_weight(tensors: list[TensorReport], adapter_bytes: int = 0) -> tuple[float, float]:
    """Stored bits per weight of the projections and of everything; codebooks and scales are counted, and in
    the latter the bytes of an adapter."""

    def average(chosen: list[TensorReport], more: int = 0) -> float:
        elements = sum(tensor.elements for tensor in chosen)
        return 8 * (sum(tensor.bytes for tensor in chosen) + more) / elements if elements else 0.0

    projections = [tensor for tensor in tensors if tensor.is_projection]
    return average(projections), average(tensors, adapter_bytes)
