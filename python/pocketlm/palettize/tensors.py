"""The tensors of a palettized model: which parts each has in the file, and how they are written."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pocketlm._core import Palettized, WeightStore
from pocketlm.kinds import PALETTE_KINDS
from pocketlm.loading import LoadedModel
from pocketlm.loading.check import stored_name
from pocketlm.loading.directory import DirectoryWriter
from pocketlm.loading.layout import Part, plan_layout
from pocketlm.palettize.progress import Progress
from pocketlm.palettize.recipe import KEEP, Candidate, Recipe

_TILE_ROWS = 16
_DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
_COPY_BYTES = 16 << 20
_DIGITS = 24  # of a part's two places, beyond those counted


@dataclasses.dataclass(frozen=True)
class Output:
    """A tensor to write: ``kind`` of the result, its logical ``shape``, its ``parts`` in the file."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    candidate: Candidate | None

    @property
    def elements(self) -> int:
        product = 1
        for size in self.shape:
            product *= size
        return product


def outputs(model: LoadedModel, known: list[Candidate], chosen: Recipe) -> list[Output]:
    """All tensors of the new model, in order of execution. What the graph does not read is left out."""
    by_name = {candidate.name: candidate for candidate in known}
    names = dict.fromkeys(stored_name(model.store, weight) for weight in model.graph.weights().values())
    result = []
    for name in names:
        candidate = by_name.get(name)
        kind = chosen[name] if candidate is not None else KEEP
        if candidate is not None and kind in PALETTE_KINDS:
            parts = palette_parts(name, kind, candidate.shape)
            result.append(Output(name, kind, candidate.shape, parts, candidate))
        else:
            info = model.store.info(name)
            parts = (Part(name, _DTYPES[info.kind], info.shape),)
            result.append(Output(name, info.kind, info.shape, parts, candidate))
    return result


def palette_parts(name: str, kind: str, shape: tuple[int, int]) -> tuple[Part, ...]:
    """Codes, codebook (where the kind has one) and scale of a palettized matrix."""
    rows, cols = shape
    facts = PALETTE_KINDS[kind]
    tiles = -(-rows // _TILE_ROWS)
    groups = -(-cols // 32)
    codes = Part(f"{name}.codes", "U8", (tiles, groups * 64 * facts.bits))
    codebook = Part(f"{name}.codebook", "I8", (tiles, facts.entries))
    scale = Part(f"{name}.scale", "F16", (rows,))
    return (codes, codebook, scale) if facts.entries else (codes, scale)


def palettes_metadata(tensors: list[Output]) -> dict[str, str]:
    """The file's metadata: format version, and kind and shape of every palettized tensor."""
    palettes = {t.name: {"kind": t.kind, "shape": list(t.shape)} for t in tensors if t.kind in PALETTE_KINDS}
    return {"pocketlm_format_version": "1", "pocketlm_palettes": json.dumps(palettes, separators=(",", ":"))}


def file_bytes(tensors: list[Output]) -> int:
    """Bytes of the file of weights that are not its tensors', at most, whatever kinds they have in the end:
    their places are numbers of a few more or less digits."""
    parts = [part for tensor in tensors for part in tensor.parts]
    layout = plan_layout(parts, palettes_metadata(tensors))
    return layout.size - sum(part.nbytes for part in parts) + _DIGITS * len(parts)


def write_dense(store: WeightStore, tensor: Output, writer: DirectoryWriter, bar: Progress) -> float:
    """Copies a tensor as it is, in pieces. Returns its relative error, 0.

    Raises:
        WeightError: a value is not finite.
    """
    store.check_finite(tensor.name)
    (part,) = tensor.parts
    for start in range(0, part.nbytes, _COPY_BYTES):
        stop = min(part.nbytes, start + _COPY_BYTES)
        writer.write(part.name, start, store.raw(tensor.name, start, stop).data)
    bar.add(tensor.elements)
    return 0.0


def write_palettized(
    store: WeightStore,
    tensor: Output,
    importance: NDArray[np.float32] | None,
    writer: DirectoryWriter,
    threads: int | None,
    bar: Progress,
    work: Callable[..., Palettized],
) -> float:
    """Palettizes a tensor and writes its parts. Returns its weighted relative error."""
    assert tensor.candidate is not None
    result = work(
        store,
        tensor.name,
        tensor.kind,
        importance=importance,
        transposed=tensor.candidate.transposed,
        threads=threads,
        progress=bar.rows(tensor.elements // tensor.shape[0]),
    )
    arrays = {"codes": result.codes, "codebook": result.codebook, "scale": result.scale}
    for part in tensor.parts:
        array = arrays[part.name.rpartition(".")[2]]
        writer.write(part.name, 0, np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
    return result.error / result.energy if result.energy else 0.0
