"""A palettization before anything is written: its source, its arguments, and the plan that they lead to."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import inspect
import json
import tempfile
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from pocketlm._core import palettize_tensor
from pocketlm.checks import flag, integer
from pocketlm.errors import ParameterError
from pocketlm.loading import open_model
from pocketlm.loading.directory import DirectoryWriter
from pocketlm.loading.files import as_path, storage_errors
from pocketlm.loading.safetensors import weight_files
from pocketlm.palettize.budgets import Budgets
from pocketlm.palettize.compensate import compensated
from pocketlm.palettize.forms import Forms
from pocketlm.palettize.forms import Work as PalettizeTensor
from pocketlm.palettize.held_out import hold_out, sequences
from pocketlm.palettize.importance import Importance, Statistics
from pocketlm.palettize.measured import Measured
from pocketlm.palettize.places import check_places
from pocketlm.palettize.plan import Plan
from pocketlm.palettize.planner import Planner
from pocketlm.palettize.recipe import candidates, read_recipe
from pocketlm.palettize.recovery import Recovery, training_windows

FORMAT_VERSION = 1
# Of what the engine computes and of how codes are chosen, as far as kept measurements and unfinished work
# depend on it: to be raised with every change that alters numbers.
ARITHMETIC = 3
_MOST_THREADS = 256  # that the engine takes
_LIMITS = inspect.signature(Budgets.of).parameters


class Work:
    """What is to be done, known before it begins."""

    def __init__(
        self,
        src: str | PathLike[str],
        budgets: Budgets,
        statistics: Statistics,
        validation: str | PathLike[str] | Iterable[str] | None,
        recipe: Mapping[str, Any] | str | PathLike[str] | None,
        palettize: PalettizeTensor,
        threads: int | None,
        progress: bool,
        *,
        recovery: Recovery | None = None,
        recover_text: str | PathLike[str] | Iterable[str] | None = None,
    ) -> None:
        if threads is not None:
            threads = integer("threads", threads, 1, _MOST_THREADS)
        flag("progress", progress)
        self.budgets, self._threads, self._progress = budgets, threads, progress
        self.model = open_model(src, check_values=False, adapter=None)
        self.known = candidates(self.model.graph, self.model.store)
        self.fixed = read_recipe(recipe, self.known)
        calibration, texts = hold_out(statistics.calibration, validation)
        given = statistics.calibration  # of a file the end may be held out: its texts then have lost its name
        file = as_path(given, "calibration") if isinstance(given, str | PathLike) else None
        statistics = dataclasses.replace(
            statistics,
            calibration=calibration,
            source=file,
            held_out=validation is None and bool(texts),
        )
        self.importance = Importance(self.model, statistics)
        judges = "calibration"
        if validation is not None:
            judges = "validation"
            file = as_path(validation, judges) if isinstance(validation, str | PathLike) else None
        self.sequences = sequences(self.model, texts, judges, file) if texts else []
        self.forms = Forms(self.model, self.importance, threads, compensated(self.importance, palettize))
        self.recovery = recovery or Recovery()
        self.windows = training_windows(self.model, recover_text, self.recovery)

    @property
    def key(self) -> str:
        """Tells one piece of work from another: its source and all that decides about the result."""
        with storage_errors(self.model.path):
            files = [
                (path.name, path.stat().st_size, path.stat().st_mtime_ns)
                for path in weight_files(self.model.path)
            ]
        texts = self.importance.digest, self.sequences
        facts = [
            FORMAT_VERSION,
            ARITHMETIC,
            files,
            self.model.config,
            dataclasses.astuple(self.budgets),
            self.fixed,
            texts,
        ]
        if self.recovery != Recovery():
            seen = "" if self.windows is None else hashlib.sha256(self.windows.tobytes()).hexdigest()
            facts += [dataclasses.astuple(self.recovery), seen]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]

    def plan(self, writer: DirectoryWriter, *, timed: bool) -> Plan:
        """Measures and chooses; ``writer`` keeps what is measured, and so does a stored calibration."""
        notes = Measured(writer)
        planner = Planner(
            self.model,
            self.known,
            self.fixed,
            self.budgets,
            self.importance,
            self.sequences,
            notes,
            self.forms,
            recovery=self.recovery,
            threads=self._threads,
            timed=timed,
            progress=self._progress,
        )
        planner.check_sizes()  # before anything takes long
        self.importance.prepare(writer, threads=self._threads, progress=self._progress)
        if self.importance.kept is not None:
            facts = FORMAT_VERSION, ARITHMETIC, self.importance.digest, self.sequences
            digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
            notes.keep_in(self.importance.kept / f"measured-{digest}.jsonl")
        return planner.plan()


def plan(
    src: str | PathLike[str],
    *,
    recipe: Mapping[str, Any] | str | PathLike[str] | None = None,
    recipe_out: str | PathLike[str] | None = None,
    calibration: str | PathLike[str] | Iterable[str] | None = None,
    calibration_out: str | PathLike[str] | None = None,
    compensation: bool = True,
    guided: bool = False,
    validation: str | PathLike[str] | Iterable[str] | None = None,
    threads: int | None = None,
    progress: bool = True,
    **budgets: Any,
) -> Plan:
    """What ``palettize`` would choose, without writing a model: only ``recipe_out``, if that is given.
    Arguments are those of ``palettize``. With ``recipe_out``, measurements are kept beside it until they
    are complete, so that interrupted work goes on.

    Raises:
        As ``palettize``; ParameterError also for an argument that it does not have.
    """
    known = [*_NAMES, *_LIMITS]
    for name in budgets:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; the nearest is {near[0]}" if near else ""
            raise ParameterError(f"{name}: unknown argument{hint}; known: {', '.join(known)}")
    limits = Budgets.of(**budgets)
    statistics = Statistics(calibration, calibration_out, compensation, guided)
    work = Work(src, limits, statistics, validation, recipe, palettize_tensor, threads, progress)
    check_places(work.model.path, None, calibration_out, recipe_out)
    if recipe_out is None:
        with tempfile.TemporaryDirectory() as folder, DirectoryWriter(Path(folder) / "x", "") as writer:
            return work.plan(writer, timed=True)
    target = as_path(recipe_out, "recipe_out")
    with DirectoryWriter(target.with_name(f"{target.name}.work"), work.key, named=target) as writer:
        found = work.plan(writer, timed=True)
        found.save(target)
        writer.discard()
    return found


_NAMES = [name for name in inspect.signature(plan).parameters if name != "budgets"]
