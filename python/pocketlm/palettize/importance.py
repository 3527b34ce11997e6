"""Importance of a model's input channels, found once and kept with the unfinished work."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from pocketlm.loading import LoadedModel
from pocketlm.loading.directory import DirectoryWriter
from pocketlm.loading.files import storage_errors
from pocketlm.palettize.calibrate import chunk_length, chunks, engine_trace, read_calibration, second_moments
from pocketlm.palettize.progress import Progress
from pocketlm.palettize.recipe import Candidate

_FILE = "importance.npz"


class Importance:
    """What :meth:`of` gives is ``None`` (all inputs alike) unless there are calibration texts."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts
        self._moments: dict[str, NDArray[np.float32]] = {}
        self.digest = hashlib.sha256("\0".join(texts).encode()).hexdigest() if texts else ""

    def prepare(
        self, model: LoadedModel, writer: DirectoryWriter, *, threads: int | None, progress: bool
    ) -> None:
        """Runs the texts through the model, or takes up what an earlier run found."""
        if not self._texts:
            return
        writer.scratch.append(_FILE)
        path = writer.partial / _FILE
        if writer.note("importance") is not None and path.exists():
            with storage_errors(path), np.load(path) as saved:
                self._moments = {name: saved[name] for name in saved.files}
            return
        length = chunk_length(model.graph)
        runs = list(chunks(model, self._texts, length))
        with (
            engine_trace(model, length, threads) as trace,
            Progress("calibrating", sum(map(len, runs)), progress, unit="tokens") as bar,
        ):

            def counted() -> Iterable[list[int]]:
                for run in runs:
                    yield run
                    bar.add(len(run))

            self._moments = second_moments(model.graph, model.store, trace, counted())
        with storage_errors(path), path.open("wb") as file:
            np.savez(file, **self._moments)  # type: ignore[arg-type]
        writer.record("importance", {})

    def of(self, tensor: Candidate) -> NDArray[np.float32] | None:
        """E[x²] of the tensor's inputs. An embedding that is looked up, not multiplied, has none."""
        return self._moments.get(tensor.name)


def find_importance(calibration: str | PathLike[str] | Iterable[str] | None) -> Importance:
    """Importance from a text file or texts; none without."""
    return Importance([] if calibration is None else read_calibration(calibration))
