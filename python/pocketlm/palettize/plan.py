"""What is to become of each tensor, with what that will give."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from pocketlm.loading.files import as_path, write_whole
from pocketlm.palettize.recipe import Candidate, Recipe, recipe_text


@dataclasses.dataclass(frozen=True)
class Planned:
    """A tensor's choice.

    Attributes:
        tensor: which.
        kind: what it becomes.
        kl: nats per token that this costs alone, measured or ``estimated``; ``None`` without a text.
        bytes: stored.
        seconds: of its products in a decode step on this machine; ``None`` where it was not measured.
        estimated: ``kl`` is interpolated between measurements of other layers.
    """

    tensor: Candidate
    kind: str
    kl: float | None
    bytes: int
    seconds: float | None
    estimated: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
    """A recipe with what it will give.

    Attributes:
        model: name of the source.
        budgets: what was asked for.
        tensors: the choices, in order of execution.
        bytes: of all tensors, a recovery adapter's included; exact, but for that, of which it is the most.
        bits_per_weight_projections, bits_per_weight_all: stored bits; exact likewise. The adapter counts in
            the latter.
        tokens_per_second: when decoding on this machine, predicted; ``None`` where it was not measured.
        kl: nats per token from the source: the sum over the tensors; ``None`` without a text.
        measured_kl: the same of the whole model, as measured on the held-out text.
        adapter_bytes: of the recovery adapter at most, of ``bytes``.
        measured_tokens: how many tokens of that text judged; ``None`` without a text.
        sensitivity: nats per token of every kind of every tensor, measured or ``estimated``.
        estimated: of large models: by tensor the kinds whose ``sensitivity`` is interpolated between
            measurements of other layers, and by the tensor's own error.
    """

    model: str
    budgets: Mapping[str, Any]
    tensors: tuple[Planned, ...]
    bytes: int
    bits_per_weight_projections: float
    bits_per_weight_all: float
    tokens_per_second: float | None
    kl: float | None
    measured_kl: float | None
    sensitivity: Mapping[str, Mapping[str, float]]
    measured_tokens: int | None = None
    adapter_bytes: int = 0
    estimated: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        """The kind of each tensor."""
        return {planned.tensor.name: planned.kind for planned in self.tensors}

    @property
    def predicted(self) -> dict[str, float]:
        """The figures that are known beforehand."""
        found = {
            "bytes": self.bytes,
            "adapter_bytes": self.adapter_bytes or None,
            "bits_per_weight_projections": self.bits_per_weight_projections,
            "bits_per_weight_all": self.bits_per_weight_all,
            "tokens_per_second": self.tokens_per_second,
            "kl": self.kl,
        }
        return {key: value for key, value in found.items() if value is not None}

    @property
    def measured(self) -> dict[str, float]:
        """The figures that were measured of the whole, and on how many tokens."""
        if self.measured_kl is None:
            return {}
        tokens = {} if self.measured_tokens is None else {"tokens": self.measured_tokens}
        return {"kl": self.measured_kl, **tokens}

    def text(self) -> str:
        """The recipe as JSON that ``pocketlm palettize --recipe`` and ``pocketlm profile --what-if`` read."""
        tensors = {}
        for planned in self.tensors:
            tensor = planned.tensor
            entry: dict[str, Any] = {"kind": planned.kind, "sites": tensor.sites, "shape": tensor.shape}
            if planned.kl is not None:
                entry["kl"] = float(f"{planned.kl:.4g}")
            if planned.estimated:
                entry["estimated"] = True
            entry["bytes"] = planned.bytes
            if planned.seconds is not None:
                entry["microseconds"] = round(1e6 * planned.seconds, 2)
            tensors[tensor.name] = entry
        header = {
            "model": self.model,
            "budgets": self.budgets,
            "predicted": self.predicted,
            "measured": self.measured,
        }
        return recipe_text(tensors, header)

    def sensitivity_text(self) -> str:
        """:attr:`sensitivity` as JSON that ``pocketlm profile`` reads, and which of it is estimated."""
        told = {"estimated": {name: list(kinds) for name, kinds in self.estimated.items()}}
        return json.dumps({**self.sensitivity, **(told if self.estimated else {})}, indent=1) + "\n"

    def save(self, path: str | PathLike[str]) -> Path:
        """Writes :meth:`text` to a file.

        Raises:
            StorageError, MissingFileError: it cannot be written.
        """
        target = as_path(path, "recipe_out")
        write_whole(target, self.text())
        return target
