"""Statistics of a model's inputs: stored ones, or found once and kept with the unfinished work."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketlm.checks import flag
from pocketlm.errors import ParameterError
from pocketlm.loading import LoadedModel
from pocketlm.loading.directory import DirectoryWriter
from pocketlm.loading.files import as_path, storage_errors
from pocketlm.palettize.calibrate import calibrate, looked_up, work_key
from pocketlm.palettize.calibration import Calibration, identify
from pocketlm.palettize.extra import require_training
from pocketlm.palettize.guided import GROUPS
from pocketlm.palettize.recipe import Candidate
from pocketlm.palettize.text import read_windows

_DIRECTORY = "calibration"


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What is to be known of a model's inputs: from a text file, texts or a stored ``calibration``, to be
    kept in the directory ``out``, whether codes make up for each other's errors by it, and whether the
    loss's gradients tell what each error counts (``guided``; a stored one may be so anyway). ``source`` is
    the file that texts were read from; of these the end may be ``held_out`` already."""

    calibration: str | PathLike[str] | Iterable[str] | None = None
    out: str | PathLike[str] | None = None
    compensation: bool = True
    guided: bool = False
    source: Path | None = None
    held_out: bool = False

    def __post_init__(self) -> None:
        for name in ("compensation", "guided"):
            flag(name, getattr(self, name))


class Importance:
    """What :meth:`of` gives is ``None`` (all inputs alike) unless there is a calibration.

    Attributes:
        digest: tells one calibration, and what is made of it, from another; empty without.
        calibration: the stored statistics, once :meth:`prepare` has run.
        compensation: whether codes make up for each other's errors.
        looked_up: names of the tensors that tokens are looked up in, be they heads too or not.
        kept: the directory that the statistics stay in; none if they go with the unfinished work.
    """

    def __init__(self, model: LoadedModel, statistics: Statistics) -> None:
        self.calibration: Calibration | None = None
        self.compensation = statistics.compensation and statistics.calibration is not None
        self.looked_up = looked_up(model)
        self._model = model
        self._out = None if statistics.out is None else as_path(statistics.out, "calibration_out")
        self.kept = self._out
        self._windows: NDArray[np.uint32] | None = None
        self._key = ""
        self._groups = 0
        given = statistics.calibration
        if given is None:
            if statistics.guided:
                raise ParameterError("guided: there is no calibration to guide")
            if self._out is not None:
                raise ParameterError("calibration_out: there is no calibration to store")
        elif isinstance(given, str | PathLike) and _is_stored(as_path(given, "calibration")):
            if self._out is not None:
                raise ParameterError("calibration_out: the calibration is stored already")
            self.calibration = Calibration.open(given)
            self.calibration.check(model)
            self.kept = self.calibration.path
            if statistics.guided and not self.calibration.guided:
                raise ParameterError(
                    f"guided: the calibration in {self.calibration.path} is not; calibrate anew from a text"
                )
            self._key = self.calibration.key
        else:
            if statistics.guided:
                require_training("guided")
                self._groups = GROUPS
            self._windows = read_windows(given, model, source=statistics.source, held_out=statistics.held_out)
            self._key = work_key(identify(model), self._windows, self._groups)
        self.digest = f"{self._key} {self.compensation}" if self._key else ""

    def prepare(self, writer: DirectoryWriter, *, threads: int | None, progress: bool) -> None:
        """Runs the text through the model, or takes up what an earlier run found."""
        if self._windows is None:
            return
        target = self._out
        if target is None:
            writer.scratch += [_DIRECTORY, f"{_DIRECTORY}.partial-{self._key[:12]}"]
            target = writer.partial / _DIRECTORY
            writer.record("calibrating", {})  # there is something to resume
        self.calibration = calibrate(
            self._model, self._windows, target, groups=self._groups, threads=threads, progress=progress
        )

    def of(self, tensor: Candidate) -> NDArray[np.float32] | None:
        """What an error of each input's weight counts: E[x²], weighted by gradients where the calibration is
        guided. An embedding that is looked up, not multiplied, has none."""
        if self.calibration is None or not self.calibration.multiplies(tensor.name):
            return None
        return self.calibration.importance(tensor.name)


def _is_stored(path: Path) -> bool:
    with storage_errors(path):
        return path.is_dir()
