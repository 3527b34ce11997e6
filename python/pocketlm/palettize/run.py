"""``palettize``: a checkpoint in, a palettized model directory out, one tensor at a time."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path

from pocketlm._core import measure_tensor, palettize_tensor
from pocketlm.errors import ParameterError
from pocketlm.kinds import BEST, BITS
from pocketlm.loading import LoadedModel, open_model
from pocketlm.loading.directory import DirectoryWriter
from pocketlm.loading.files import as_path, storage_errors
from pocketlm.loading.layout import plan_layout
from pocketlm.loading.safetensors import weight_files
from pocketlm.palettize.allocate import allocate, prior
from pocketlm.palettize.importance import Importance, find_importance
from pocketlm.palettize.progress import Progress
from pocketlm.palettize.recipe import KEEP, Candidate, Recipe, candidates, read_recipe, recipe_json
from pocketlm.palettize.report import Report, TensorReport, bits_per_weight
from pocketlm.palettize.tensors import Output, outputs, palettes_metadata, write_dense, write_palettized

# Small files that go along with the weights.
_COPIED = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "generation_config.json",
    "chat_template*",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
_MEASURED = tuple(BEST.values())
_MEASURED_TILES = 32
FORMAT_VERSION = 1


def palettize(
    src: str | PathLike[str],
    dst: str | PathLike[str],
    *,
    bits: float = 4.0,
    embedding_bits: int = 8,
    calibration: str | PathLike[str] | Iterable[str] | None = None,
    recipe: Mapping[str, str] | str | PathLike[str] | None = None,
    progress: bool = True,
    overwrite: bool = False,
    threads: int | None = None,
) -> Report:
    """Palettizes the model in ``src`` (a directory or a hub id, 16- or 32-bit) into the new directory
    ``dst``.

    ``bits`` (2 to 8) is the average over the projections' codes; averages that no kind has are met by mixing
    kinds, chosen by measured error. Embeddings and head get ``embedding_bits`` (2, 3, 4 or 8).
    ``calibration`` (a text file, or texts) makes errors count by the activations that they meet. ``recipe``
    (a mapping of tensor names to "p2", "p2v", "p3", "p4", "p8" or "keep", or a JSON file of that form) fixes
    tensors by hand; the average is then met with the others.

    Work that was interrupted is taken up again by the same call and ends in the same bytes; ``dst`` appears
    when it is complete. Memory stays near that of the largest tensor. Results do not depend on ``threads`` or
    the machine.

    Raises:
        ParameterError: an argument is out of range, or ``dst`` exists and ``overwrite`` is not set.
        StorageError: the disk is full or read-only.
        UnsupportedError: the model is palettized already.
        All that :func:`pocketlm.loading.open_model` raises.
    """
    started = time.monotonic()
    _check_numbers(bits, embedding_bits, threads)
    target = as_path(dst, "dst")
    model = open_model(src, check_values=False)
    _check_places(model.path, target)
    known = candidates(model.graph, model.store)
    fixed = read_recipe(recipe, known)
    importance = find_importance(calibration)
    key = _key(model, bits, embedding_bits, fixed, importance)
    with DirectoryWriter(target, key, overwrite=overwrite) as writer:
        importance.prepare(model, writer, threads=threads, progress=progress)
        chosen = _choose(model, known, fixed, bits, embedding_bits, importance, writer, threads, progress)
        tensors = outputs(model, known, chosen)
        parts = [part for tensor in tensors for part in tensor.parts]
        writer.begin_weights(plan_layout(parts, palettes_metadata(tensors)))
        reports, resumed = _write(model, tensors, importance, writer, threads, progress)
        figures = bits_per_weight(reports)
        config = {**model.config, "pocketlm": _section(bits, embedding_bits, figures)}
        texts = {
            "config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n",
            "recipe.json": recipe_json(chosen),
        }
        writer.finish(texts, _copies(model.path))
    return Report(target, chosen, tuple(reports), *figures, time.monotonic() - started, resumed)


def _check_numbers(bits: float, embedding_bits: int, threads: int | None) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int | float) or not 2 <= bits <= 8:
        raise ParameterError(f"bits: must be a number from 2 to 8, not {bits!r:.60}")
    if isinstance(embedding_bits, bool) or embedding_bits not in BEST:
        raise ParameterError(f"embedding_bits: must be 2, 3, 4 or 8, not {embedding_bits!r:.60}")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ParameterError(f"threads: must be a positive number, not {threads!r:.60}")


def _check_places(source: Path, target: Path) -> None:
    with storage_errors(target):
        inner, outer = target.resolve(), source.resolve()
    if not target.name or inner == outer or outer in inner.parents or inner in outer.parents:
        raise ParameterError(f"dst: {target} must be a new directory outside of {source}")


def _key(model: LoadedModel, bits: float, embedding_bits: int, fixed: Recipe, importance: Importance) -> str:
    """Tells one piece of work from another: its source and all that decides about the result."""
    with storage_errors(model.path):
        files = [
            (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in weight_files(model.path)
        ]
    facts = [FORMAT_VERSION, files, model.config, float(bits), embedding_bits, fixed, importance.digest]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _choose(
    model: LoadedModel,
    known: list[Candidate],
    fixed: Recipe,
    bits: float,
    embedding_bits: int,
    importance: Importance,
    writer: DirectoryWriter,
    threads: int | None,
    progress: bool,
) -> Recipe:
    """The kind of every matrix, in order of execution."""
    chosen = {tensor.name: BEST[embedding_bits] for tensor in known if tensor.is_embedding}
    projections = [tensor for tensor in known if not tensor.is_embedding]
    open_ones = [tensor for tensor in projections if tensor.name not in fixed]
    taken = {
        tensor.name: BITS.get(fixed[tensor.name], 0) * tensor.elements
        for tensor in projections
        if fixed.get(tensor.name, KEEP) != KEEP
    }
    # A tensor that is kept is outside of the average: nothing could make up for its 16 bits.
    counted = [tensor for tensor in projections if fixed.get(tensor.name) != KEEP]
    if bits in BEST and all(BITS.get(fixed.get(tensor.name, ""), bits) == bits for tensor in counted):
        chosen |= {tensor.name: BEST[int(bits)] for tensor in open_ones}
    elif open_ones:
        losses = _measure(model, open_ones, importance, writer, threads, progress)
        budget = math.floor(bits * sum(tensor.elements for tensor in counted) + 1e-6) - sum(taken.values())
        chosen |= allocate(open_ones, losses, budget)
    chosen |= fixed
    return {tensor.name: chosen[tensor.name] for tensor in known}


def _measure(
    model: LoadedModel,
    tensors: list[Candidate],
    importance: Importance,
    writer: DirectoryWriter,
    threads: int | None,
    progress: bool,
) -> dict[str, dict[str, float]]:
    """Loss of each kind for each tensor: relative error on a sample of tiles, times the site's prior."""
    layers = 1 + max(
        (int(s.split(".")[1]) for t in tensors for s in t.sites if s.startswith("layers.")), default=0
    )
    losses: dict[str, dict[str, float]] = {}
    with Progress("measuring", len(tensors) * len(_MEASURED), progress, unit="tensors") as bar:
        for tensor in tensors:
            note = f"measure {tensor.name}"
            relative = writer.note(note)
            if relative is None:
                relative = {}
                for kind in _MEASURED:
                    error, energy = measure_tensor(
                        model.store,
                        tensor.name,
                        kind,
                        tiles=_MEASURED_TILES,
                        importance=importance.of(tensor),
                        transposed=tensor.transposed,
                        threads=threads,
                    )
                    relative[kind] = error / energy if energy else 0.0
                model.store.release(tensor.name)
                writer.record(note, relative)
            factor = prior(tensor, layers)
            losses[tensor.name] = {kind: factor * relative[kind] for kind in _MEASURED}
            bar.add(len(_MEASURED))
    return losses


def _write(
    model: LoadedModel,
    tensors: list[Output],
    importance: Importance,
    writer: DirectoryWriter,
    threads: int | None,
    progress: bool,
) -> tuple[list[TensorReport], int]:
    """Writes every tensor that is not there yet; returns the reports and how many were there."""
    reports, resumed = [], 0
    with Progress("palettizing", sum(tensor.elements for tensor in tensors), progress, unit="weights") as bar:
        for tensor in tensors:
            sizes = {part.name: part.nbytes for part in tensor.parts}
            note = writer.note(tensor.name)
            if note is not None and note.get("crc") == writer.checksums(sizes):
                resumed += 1
                bar.add(tensor.elements)
            else:
                if tensor.candidate is None or tensor.kind not in BITS:
                    relative = write_dense(model.store, tensor, writer, bar)
                else:
                    relative = write_palettized(
                        model.store,
                        tensor,
                        importance.of(tensor.candidate),
                        writer,
                        threads,
                        bar,
                        palettize_tensor,
                    )
                writer.flush()
                note = {"crc": writer.checksums(sizes), "relative_error": relative}
                writer.record(tensor.name, note)
                model.store.release(tensor.name)
            reports.append(
                TensorReport(
                    tensor.name,
                    tensor.kind,
                    tensor.shape,
                    sum(sizes.values()),
                    note["relative_error"],
                    tensor.candidate is not None and not tensor.candidate.is_embedding,
                )
            )
    return reports, resumed


def _section(bits: float, embedding_bits: int, figures: tuple[float, float]) -> dict[str, object]:
    projections, everything = figures
    return {
        "format_version": FORMAT_VERSION,
        "bits": float(bits),
        "embedding_bits": embedding_bits,
        "bits_per_weight_projections": round(projections, 4),
        "bits_per_weight_all": round(everything, 4),
    }


def _copies(source: Path) -> list[Path]:
    with storage_errors(source):
        found = {path.name: path for pattern in _COPIED for path in source.glob(pattern) if path.is_file()}
    return [found[name] for name in sorted(found)]
