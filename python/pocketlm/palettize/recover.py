"""The accuracy-recovery adapter: low-rank corrections of the palettized projections, in closed form."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from pocketlm._core import WeightStore
from pocketlm.adapters.config import stored_bytes
from pocketlm.adapters.write import Pair
from pocketlm.kinds import BITS
from pocketlm.loading import LoadedModel
from pocketlm.loading.directory import DirectoryWriter
from pocketlm.loading.files import storage_errors
from pocketlm.loading.safetensors import SINGLE
from pocketlm.palettize.calibration import Calibration
from pocketlm.palettize.lowrank import factors, spectrum, weighted_error
from pocketlm.palettize.progress import Progress
from pocketlm.palettize.ranks import SPREAD, Site, allocate_ranks
from pocketlm.palettize.recovery import Recovery
from pocketlm.palettize.tensors import Output


def projections(tensors: list[Output]) -> list[Output]:
    """The palettized matrices inside the layers."""
    return [t for t in tensors if t.candidate and not t.candidate.is_embedding and t.kind in BITS]


@dataclasses.dataclass(frozen=True)
class Corrections:
    """Low-rank terms of the projections.

    Attributes:
        pairs: A and B by tensor; none where the rank is 0.
        ranks: by tensor.
        remaining: mean squared error of the outputs over what it was, by tensor.
    """

    pairs: dict[str, Pair]
    ranks: dict[str, int]
    remaining: dict[str, float]


def correct(
    model: LoadedModel,
    tensors: list[Output],
    moments: Calibration,
    recovery: Recovery,
    writer: DirectoryWriter,
    *,
    progress: bool,
) -> Corrections:
    """Corrections of a model whose palettized weights are written.

    That of a tensor is found once and kept with the unfinished work; the same call goes on where an
    interrupted one stopped and ends in the same numbers.
    """
    chosen = projections(tensors)
    written = WeightStore()
    written.open(writer.partial / SINGLE)
    found: dict[str, Path] = {}
    with Progress("recovering", sum(t.elements for t in chosen), progress, unit="weights") as bar:
        for index, tensor in enumerate(chosen):
            found[tensor.name] = _correct(model, written, tensor, index, moments, recovery, writer)
            bar.add(tensor.elements)
    saved = {name: _load(path) for name, path in found.items()}
    shapes = {t.name: t.shape for t in chosen}

    def size(name: str, rank: int) -> int:
        outputs, inputs = shapes[name]
        return stored_bytes(rank, outputs, inputs, int8=recovery.int8)

    sites = [
        Site(name, arrays["gains"] / arrays["energy"], functools.partial(size, name))
        for name, arrays in saved.items()
    ]
    number = 1 if recovery.int8 else 2  # bytes
    ranks = allocate_ranks(sites, sum(number * recovery.rank * sum(shapes[name]) for name in found))
    pairs: dict[str, Pair] = {
        name: (arrays["a"][: ranks[name]], arrays["b"][:, : ranks[name]])
        for name, arrays in saved.items()
        if ranks[name]
    }
    remaining = {
        name: 1 - float(arrays["gains"][: ranks[name]].sum() / arrays["error"]) if arrays["error"] else 1.0
        for name, arrays in saved.items()
    }
    return Corrections(pairs, ranks, remaining)


def _correct(
    model: LoadedModel,
    written: WeightStore,
    tensor: Output,
    index: int,
    moments: Calibration,
    recovery: Recovery,
    writer: DirectoryWriter,
) -> Path:
    """Factors, gains, error and energy of a tensor, in a file of the unfinished work."""
    assert tensor.candidate is not None
    path = writer.partial / f"recovery-{index}.npz"
    writer.scratch.append(path.name)
    note = f"recovery {tensor.name}"
    known = writer.note(note)
    if known is not None and path.exists() and known["digest"] == _digest(path):
        return path
    weight = model.store.dense(tensor.name)
    weight = np.ascontiguousarray(weight.T) if tensor.candidate.transposed else weight
    moment = moments.second_moment(tensor.name)
    energy = weighted_error(weight, moment)
    error = weight - written.dense(tensor.name)
    del weight
    found = spectrum(error, moment, SPREAD * recovery.rank)
    a, b = factors(error, found.directions)
    with storage_errors(path), path.open("wb") as file:
        np.savez(file, a=a, b=b, gains=found.gains, error=found.total, energy=energy or 1.0)
    writer.record(note, {"digest": _digest(path)})
    model.store.release(tensor.name)
    written.release(tensor.name)
    return path


def _load(path: Path) -> dict[str, Any]:
    with storage_errors(path), np.load(path) as saved:
        return {name: saved[name] for name in saved.files}


def _digest(path: Path) -> str:
    with storage_errors(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
