"""``palettize``: a checkpoint in, a palettized model directory out, one tensor at a time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from pocketlm._core import Palettized, palettize_tensor
from pocketlm.checks import flag
from pocketlm.kinds import BITS
from pocketlm.loading import LoadedModel
from pocketlm.loading.directory import DirectoryWriter
from pocketlm.loading.files import as_path, storage_errors
from pocketlm.loading.layout import plan_layout
from pocketlm.palettize.budgets import Budgets
from pocketlm.palettize.importance import Importance, Statistics
from pocketlm.palettize.places import check_places
from pocketlm.palettize.progress import Progress
from pocketlm.palettize.recipe import recipe_json
from pocketlm.palettize.recovery import Recovery, recover_weights
from pocketlm.palettize.report import Report, TensorReport, bits_per_weight
from pocketlm.palettize.tensors import Output, outputs, palettes_metadata, write_dense, write_palettized
from pocketlm.palettize.work import FORMAT_VERSION, Work

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


def palettize(
    src: str | PathLike[str],
    dst: str | PathLike[str],
    *,
    bits: float | None = None,
    bits_all: float | None = None,
    size: int | None = None,
    tokens_per_second: float | None = None,
    max_kl: float | None = None,
    kinds: str | Iterable[str | int] | None = None,
    embedding_bits: int | None = None,
    calibration: str | PathLike[str] | Iterable[str] | None = None,
    calibration_out: str | PathLike[str] | None = None,
    compensation: bool = True,
    guided: bool = False,
    validation: str | PathLike[str] | Iterable[str] | None = None,
    recipe: Mapping[str, Any] | str | PathLike[str] | None = None,
    recipe_out: str | PathLike[str] | None = None,
    recover: int = 0,
    recover_dtype: Literal["int8", "f16"] = "int8",
    recover_train: int = 0,
    recover_text: str | PathLike[str] | Iterable[str] | None = None,
    progress: bool = True,
    overwrite: bool = False,
    threads: int | None = None,
) -> Report:
    """Palettizes the model in ``src`` (a directory or a hub id, 16- or 32-bit) into the new directory
    ``dst``.

    Args:
        src, dst: the source, and the directory to make.
        bits: average bits of the projections' codes, 2 to 8; 4 where nothing else is limited.
        bits_all: stored bits per parameter of everything.
        size: bytes of the file of weights, and of an adapter's.
        tokens_per_second: at least so many, when decoding on this machine.
        max_kl: nats per token of divergence from the source, on the held-out text. With it the model is the
            smallest within the budgets, without it the one that loses least.
        kinds: to choose from, by name or by bits (``"2,4"``); by default the best of each number of bits:
            p2v, p3, p4 and p8.
        embedding_bits: of embedding and head. They are free where a budget other than ``bits`` is given,
            else 8.
        calibration: a text file, texts, or a stored calibration: tells what inputs the products meet.
        calibration_out: a directory to keep the calibration in, for further runs.
        compensation: whether codes make up for each other's errors, which loses far less. Without it, each
            error counts by the size of its input alone.
        guided: whether the loss's gradients tell what each output's error counts (docs/allocation.md). Needs
            a calibration that is to be made, or a stored one that is guided, which is used so in any case;
            to make one takes some times as long, and the extra ``train``.
        validation: a text file, of which the first 4 MiB are read, or texts, that judge, at least 256 tokens;
            else the end of the calibration text, which is then
            left out of the calibration. With neither, kinds are chosen by each tensor's own error.
        recipe: kinds of single tensors (see :func:`pocketlm.palettize.recipe.read_recipe`), fixed by hand;
            budgets are then met with the others.
        recipe_out: a file for the recipe with what each choice costs, times on this machine included.
        recover: average rank of an accuracy-recovery adapter, such as 16; 0 for none. Low-rank corrections of
            the projections undo as much of the outputs' error over the calibration text as their bytes can
            (docs/recovery.md). ``size`` and ``bits_all`` count its bytes, ``tokens_per_second`` its products;
            ``bits`` are those of the codes.
        recover_dtype: how the adapter is stored: ``"int8"``, or ``"f16"``, which PEFT reads too.
        recover_train: tokens to learn from: the adapter, if there is one, codebooks, row scales and norms
            learn to predict what the source predicts, or, where that takes more memory than the machine has,
            layer by layer to give what the source's layers give. Needs the extra ``train``.
        recover_text: a text file, or texts, to learn from.

    Work that was interrupted is taken up again by the same call and ends in the same bytes; ``dst`` appears
    when it is complete. Memory stays near that of the largest tensor; with a text the palettized model is
    held too. Results depend neither on ``threads`` nor on the machine, but for ``tokens_per_second``
    and what is computed by JAX (``guided``, ``recover_train``).

    Raises:
        ParameterError: an argument is out of range, ``dst`` exists and ``overwrite`` is not set, or a result
            would lie inside of the source or of another one.
        MissingFileError: there is no directory for ``recipe_out``.
        BudgetError: the budgets cannot be met; says the nearest that can.
        StorageError: the disk is full or read-only.
        UnsupportedError: the model is palettized already, or ``guided`` or training lack their packages.
        AdapterError: the training's loss is not finite.
        All that :func:`pocketlm.loading.open_model` raises.
    """
    started = time.monotonic()
    budgets = Budgets.of(
        bits=bits,
        bits_all=bits_all,
        size=size,
        tokens_per_second=tokens_per_second,
        max_kl=max_kl,
        kinds=kinds,
        embedding_bits=embedding_bits,
    )
    recovery = Recovery(recover, recover_dtype, recover_train)
    recovery.check(calibration, recover_text)
    flag("overwrite", overwrite)
    target = as_path(dst, "dst")
    statistics = Statistics(calibration, calibration_out, compensation, guided)
    work = Work(
        src,
        budgets,
        statistics,
        validation,
        recipe,
        _palettize_tensor,
        threads,
        progress,
        recovery=recovery,
        recover_text=recover_text,
    )
    check_places(work.model.path, target, calibration_out, recipe_out)
    with DirectoryWriter(target, work.key, overwrite=overwrite) as writer:
        plan = work.plan(writer, timed=recipe_out is not None)
        chosen = plan.recipe
        tensors = outputs(work.model, work.known, chosen)
        parts = [part for tensor in tensors for part in tensor.parts]
        writer.begin_weights(plan_layout(parts, palettes_metadata(tensors)))
        reports, resumed = _write(
            work.model, tensors, work.importance, writer, threads, progress, work.forms.work
        )
        recovered = recover_weights(work, tensors, writer, threads=threads, progress=progress)
        figures = bits_per_weight(reports, recovered.bytes if recovered else 0)
        config = {**work.model.config, "pocketlm": _section(budgets, figures, recipe is not None)}
        texts = {
            "config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n",
            "recipe.json": recipe_json(chosen),
        }
        if plan.sensitivity:
            texts["sensitivity.json"] = plan.sensitivity_text()
        if recipe_out is not None:
            plan.save(recipe_out)
        writer.finish(texts, _copies(work.model.path))
    seconds = time.monotonic() - started
    return Report(target, chosen, tuple(reports), *figures, seconds, resumed, plan, recovered)


def _palettize_tensor(*args: Any, **kwargs: Any) -> Palettized:
    return palettize_tensor(*args, **kwargs)  # looked up now: the module's name may stand for another


def _write(
    model: LoadedModel,
    tensors: list[Output],
    importance: Importance,
    writer: DirectoryWriter,
    threads: int | None,
    progress: bool,
    work: Callable[..., Palettized],
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
                        work,
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


def _section(budgets: Budgets, figures: tuple[float, float], by_recipe: bool) -> dict[str, object]:
    projections, everything = figures
    # Of what a recipe leaves open the default says little, and of the whole nothing.
    asked = {"bits": budgets.bits, "embedding_bits": budgets.embedding_bits}
    if by_recipe and budgets.by_default:
        asked = {}
    return {
        "format_version": FORMAT_VERSION,
        **{key: value for key, value in asked.items() if value is not None},
        "bits_per_weight_projections": round(projections, 4),
        "bits_per_weight_all": round(everything, 4),
    }


def _copies(source: Path) -> list[Path]:
    with storage_errors(source):
        found = {path.name: path for pattern in _COPIED for path in source.glob(pattern) if path.is_file()}
    return [found[name] for name in sorted(found)]
