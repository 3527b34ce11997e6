"""Second moments E[xxᵀ] of what projections read, from calibration text, kept beside the unfinished work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pocketlm.loading import LoadedModel
from pocketlm.loading.check import stored_name
from pocketlm.loading.directory import DirectoryWriter
from pocketlm.loading.files import storage_errors
from pocketlm.palettize.calibrate import Trace, chunk_length, chunks, engine_trace
from pocketlm.palettize.progress import Progress
from pocketlm.palettize.tensors import Output

Matrix = NDArray[np.float32]


class Moments(Protocol):
    """Where second moments come from."""

    def second_moment(self, tensor: str) -> Matrix:
        """E[xxᵀ] [inputs, inputs] of what the products with this tensor read."""
        ...


class TracedMoments:
    """Moments found by tracing a model; one file for each value that projections read."""

    def __init__(self, model: LoadedModel, directory: Path, names: Iterable[str]) -> None:
        wanted = set(names)
        self._sources: dict[str, list[int]] = {}  # tensor: the values that its products read
        for op in model.graph.linears():
            name = stored_name(model.store, op.weight)
            if name in wanted:
                self._sources.setdefault(name, []).append(op.x)
        self._graph, self._directory = model.graph, directory

    @property
    def files(self) -> list[str]:
        """Names of the files."""
        return [self._file(x) for x in self._values()]

    def _values(self) -> list[int]:
        return sorted({x for values in self._sources.values() for x in values})

    @staticmethod
    def _file(x: int) -> str:
        return f"moment-{x}.npy"

    def collect(self, trace: Trace, runs: Iterable[Sequence[int]]) -> None:
        """Adds up over the runs: one run's values are in memory, the sums are files that are mapped."""
        sums = {}
        count = 0
        for x in self._values():
            path, width = self._directory / self._file(x), self._graph.ops[x].width
            with storage_errors(path):
                sums[x] = np.lib.format.open_memmap(path, "w+", np.float32, (width, width))
        for ids in runs:
            values = trace(ids)
            count += len(ids)
            for x, total in sums.items():
                rows = np.asarray(values[self._graph.ops[x].name], np.float32)
                total += rows.T @ rows
        for total in sums.values():
            total /= max(count, 1)
            total.flush()

    def second_moment(self, tensor: str) -> Matrix:
        """E[xxᵀ] of what the products with this tensor read; of several, the sum."""
        total: Matrix | None = None
        for x in self._sources[tensor]:
            path = self._directory / self._file(x)
            with storage_errors(path):
                moment = np.load(path)
            total = moment if total is None else total + moment
        assert total is not None
        return total


def traced_moments(
    model: LoadedModel,
    tensors: list[Output],
    texts: list[str],
    writer: DirectoryWriter,
    threads: int | None,
    progress: bool,
) -> Moments:
    """The moments of all matrices of a model in the making, found now or by an earlier run."""
    moments = TracedMoments(model, writer.partial, [t.name for t in tensors if t.candidate])
    writer.scratch.extend(moments.files)
    if writer.note("moments") is not None and all((writer.partial / f).exists() for f in moments.files):
        return moments
    length = chunk_length(model.graph)
    runs = list(chunks(model, texts, length))
    with (
        engine_trace(model, length, threads) as trace,
        Progress("calibrating", sum(map(len, runs)), progress, unit="tokens") as bar,
    ):

        def counted() -> Iterator[list[int]]:
            for run in runs:
                yield run
                bar.add(len(run))

        moments.collect(trace, counted())
    writer.record("moments", {})
    return moments
