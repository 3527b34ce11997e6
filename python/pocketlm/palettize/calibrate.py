"""Runs a text through a model, part by part, and stores the second moments of what every projection reads.

The mean square error of an output with weights ŵ for w is (w - ŵ) H (w - ŵ)ᵀ with H = E[x xᵀ], the second
moment of its inputs (the Hessian of the layer-wise problem; Frantar and Alistarh, arXiv 2208.11420). A moment
has the square of the inputs' number of elements, so one part of the model at a time is run over all of the
text (:mod:`pocketlm.palettize.segments`); between parts the hidden state of all tokens lies on the disk.
Each finished part is kept, and an interrupted calibration goes on behind it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketlm._core import Engine, SecondMoment, WeightStore
from pocketlm.errors import ParameterError, StorageError, WeightError
from pocketlm.graph import Embed, Graph, Linear
from pocketlm.loading import LoadedModel
from pocketlm.loading.check import stored_name
from pocketlm.loading.files import storage_errors
from pocketlm.loading.safetensors import open_weights
from pocketlm.palettize.calibration import MANIFEST, VERSION, Calibration, identify
from pocketlm.palettize.hidden import Hidden
from pocketlm.palettize.progress import Progress
from pocketlm.palettize.segments import HIDDEN, Segment, segments
from pocketlm.palettize.text import digest

_JOURNAL = "journal.json"
_SPARE_BYTES = 16 << 20


def calibrate(
    model: LoadedModel,
    windows: NDArray[np.uint32],
    target: Path,
    *,
    threads: int | None = None,
    progress: bool = True,
) -> Calibration:
    """Second moments of ``model`` over ``windows`` [windows, tokens], stored in the new directory ``target``.

    Work happens in ``TARGET.partial-<key>`` and is taken up again by the same call; ``target`` appears when
    it is complete. If it is there already and holds the same, it is opened. Memory stays near that of the
    largest part of the model (a layer's attention or feed-forward) with its moments.

    Raises:
        ParameterError: ``target`` exists and holds something else.
        StorageError: the disk is full or read-only.
        WeightError: the model gives numbers that are not finite.
    """
    who = identify(model)
    key = work_key(who, windows)
    with storage_errors(target):
        exists = target.exists()
    if exists:
        found = Calibration.open(target)
        if found.key != key:
            raise ParameterError(f"{target}: holds the calibration of another model or text")
        return found
    partial = target.with_name(f"{target.name}.partial-{key[:12]}")
    parts = segments(model.graph)
    with storage_errors(partial):
        partial.mkdir(parents=True, exist_ok=True)
    done = _done(partial)
    _check_room(partial, model.graph, parts[done:], windows.size)
    with Progress("calibrating", windows.size * len(parts), progress, unit="tokens") as bar:
        bar.add(windows.size * done)
        for index in range(done, len(parts)):
            hidden = Hidden.open(partial, index, parts[index], windows.size) if index else None
            _run(model, parts[index], windows, partial, hidden, index, threads, bar)
            _replace(partial / _JOURNAL, {"parts": index + 1})
            if hidden is not None:
                hidden.remove()
    facts = {
        "pocketlm_calibration": VERSION,
        "model": who,
        "key": key,
        "tokens": int(windows.size),
        "tensors": _tensors(model),
    }
    _replace(partial / MANIFEST, facts)
    with storage_errors(target):
        (partial / _JOURNAL).unlink(missing_ok=True)
        partial.rename(target)
    return Calibration.open(target)


def work_key(model: str, windows: NDArray[np.uint32]) -> str:
    """Tells one calibration from another: its model (see :func:`identify`) and all that decides about it."""
    return hashlib.sha256(json.dumps([VERSION, model, digest(windows)]).encode()).hexdigest()


def moment_file(graph: Graph, op: Linear) -> str:
    """The file with the second moment of what ``op`` reads; products of the same input share it."""
    return f"moment-{op.x:05d}.npy"


def _run(
    model: LoadedModel,
    segment: Segment,
    windows: NDArray[np.uint32],
    partial: Path,
    hidden: Hidden | None,
    index: int,
    threads: int | None,
    bar: Progress,
) -> None:
    """One segment over all windows: its moments, and the hidden state behind it."""
    graph = model.graph
    wanted = {op.x: graph.ops[op.x].name for op in segment.ops if isinstance(op, Linear)}
    last = segment.ops[-1]
    final = segment.stop == len(graph.ops)
    names = {*wanted.values()} if final else {*wanted.values(), last.name}
    sums = {x: SecondMoment(graph.ops[x].width) for x in wanted}
    count, length = windows.shape
    after = None if final else Hidden.create(partial, index + 1, windows.size, last.width)
    with _engine(model, segment, hidden, length, threads) as engine:
        for window in range(count):
            first = window * length
            ids = windows[window] if hidden is None else np.arange(first, first + length, dtype=np.uint32)
            values = engine.trace(ids, sorted(names))
            for x, name in wanted.items():
                read = values[name] if x >= segment.start else hidden.rows(first, length)  # type: ignore[union-attr]
                if not np.isfinite(read).all():
                    raise WeightError(f"{model.path}: {name} gives numbers that are not finite")
                sums[x].add(read, threads=threads)
            if after is not None:
                after.append(values[last.name])
            bar.add(length)
    for x, total in sums.items():
        path = partial / f"moment-{x:05d}.npy"
        with storage_errors(path), path.open("wb") as file:
            np.save(file, total.finish(1 / windows.size))


@contextmanager
def _engine(
    model: LoadedModel, segment: Segment, hidden: Hidden | None, length: int, threads: int | None
) -> Iterator[Engine]:
    """An engine of one segment, on the model's own weights, with float32 activations."""
    store = model.store
    if hidden is not None:
        store = open_weights(model.path)
        store.open(hidden.path)
    rows = hidden.tokens if hidden is not None else 0
    engine = Engine(
        segment.runnable(rows).to_json(),
        store,
        threads=threads,
        cache_tokens=length,
        max_rows=1,
        precise=True,
    )
    try:
        yield engine
    finally:
        engine.close()
        _release(model, store, segment)


def _release(model: LoadedModel, store: WeightStore, segment: Segment) -> None:
    """Gives back the pages of a segment's weights: the next one has its own."""
    for op in segment.ops:
        for weight in op.weights():
            store.release(stored_name(model.store, weight))
    if HIDDEN in store:
        store.release(HIDDEN)


def _tensors(model: LoadedModel) -> dict[str, dict[str, Any]]:
    """What the manifest says of each matrix."""
    found: dict[str, dict[str, Any]] = {}
    for op in model.graph.ops:
        if isinstance(op, Linear | Embed):
            entry = found.setdefault(
                stored_name(model.store, op.weight), {"shape": list(op.weight.shape), "inputs": []}
            )
            if isinstance(op, Linear):
                entry["inputs"].append(moment_file(model.graph, op))
    return found


def _check_room(partial: Path, graph: Graph, parts: list[Segment], tokens: int) -> None:
    widths = {op.x: graph.ops[op.x].width for part in parts for op in part.ops if isinstance(op, Linear)}
    states = sorted(4 * tokens * part.ops[-1].width for part in parts[:-1])
    needed = sum(4 * width * width for width in widths.values()) + sum(states[-2:]) + _SPARE_BYTES
    with storage_errors(partial):
        free = shutil.disk_usage(partial).free
    if free < needed:
        raise StorageError(f"{partial}: calibration needs {needed} bytes, the disk has {free} free")


def _done(partial: Path) -> int:
    """How many parts an earlier run has finished."""
    try:
        done = json.loads((partial / _JOURNAL).read_text())["parts"]
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return done if isinstance(done, int) and (done == 0 or Hidden.is_there(partial, done)) else 0


def _replace(path: Path, facts: dict[str, Any]) -> None:
    """Writes a small file so that a kill leaves the old one or the new one."""
    new = path.with_name(path.name + ".new")
    with storage_errors(path):
        new.write_text(json.dumps(facts, indent=1) + "\n")
        new.replace(path)
