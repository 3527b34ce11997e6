"""Profiles of a tiny model for tests: real steps, but roofs and products' times made up, so that they are
quick."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from checkpoints import write_checkpoint
from independent.cases import llama, openelm
from pocketlm.kinds import BITS
from pocketlm.palettize import palettize
from pocketlm.profile import Profile, machine, measure, profile
from pocketlm.profile.costs import Costs, Progress, Times

MACHINE = machine.Machine("a processor", "some isa", 2, 4e10, 9e11)


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces what takes long to measure."""
    monkeypatch.setattr(machine.Machine, "measure", classmethod(lambda *_: MACHINE))
    monkeypatch.setattr(Costs, "_measured", made_up_times)
    monkeypatch.setattr(measure, "_LEAST_SECONDS", 0.0)


def made_up(shape: tuple[int, ...], kind: str) -> tuple[float, float]:
    """Seconds of a product by its bits."""
    elements, bits = shape[0] * shape[1], BITS.get(kind, 16)
    return 1e-6 + elements * bits / 8e10, 2e-6 + elements * (3e-9 if kind in BITS else 9e-9)


def made_up_times(costs: Costs, kinds: Sequence[str], progress: Progress | None) -> Times:
    """Those of all products of a model."""
    if progress is not None:
        progress(0, len(kinds))
    linears = list(costs._graph.linears())
    return {kind: {op.name: made_up(op.weight.shape, kind) for op in linears} for kind in kinds}


def models(folder: Path, family: str = "llama") -> tuple[Path, Path]:
    """A dense checkpoint of 16 bits and its palettized form of mixed kinds."""
    config = openelm() if family == "openelm" else llama(tie_word_embeddings=family == "tied")
    source = write_checkpoint(folder / "source", config)
    palettize(source, folder / "model", bits=3.5, progress=False)
    return source, folder / "model"


def measured(path: Path, **settings: Any) -> Profile:
    """A profile of few steps."""
    return profile(path, **{"prompt": 40, "context": 9, "repeats": 1, "cache": False, **settings})


def with_names(found: Profile, name: str, site: str) -> Profile:
    """The same with another model's name and other names of its operations."""

    def new(old: str) -> str:
        return f"{old}{site}"

    rows = type(found.table)(
        dataclasses.replace(
            row,
            name=new(row.name),
            site=new(row.site),
            tensor=row.tensor and new(row.tensor),
            inputs=tuple(map(new, row.inputs)),
            fused=tuple(map(new, row.fused)),
        )
        for row in found.table
    )
    matrices = tuple(
        dataclasses.replace(matrix, name=new(matrix.name), ops=tuple(map(new, matrix.ops)))
        for matrix in found.matrices
    )
    changed = dataclasses.replace(found, model=name, table=rows)
    changed.__dict__["matrices"] = matrices
    return changed
