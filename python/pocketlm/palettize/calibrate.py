"""Runs a text through a model, part by part, and stores the second moments of what every projection reads.

The mean square error of an output with weights ŵ for w is (w - ŵ) H (w - ŵ)ᵀ with H = E[x xᵀ], the second
moment of its inputs (the Hessian of the layer-wise problem; Frantar and Alistarh, arXiv 2208.11420). A moment
has the square of the inputs' number of elements, so one part of the model at a time is run over all of the
text (:mod:`pocketlm.palettize.segments`); between parts the hidden state of all tokens lies on the disk.
A guided calibration goes through the parts once more, backwards (:mod:`pocketlm.palettize.guided`). Each
finished part is kept, and an interrupted calibration goes on behind it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketlm._core import Engine, SecondMoment, WeightStore
from pocketlm.errors import MissingFileError, ParameterError, StorageError, WeightError
from pocketlm.graph import Embed, Linear
from pocketlm.loading import LoadedModel
from pocketlm.loading.check import stored_name
from pocketlm.loading.files import resolved, storage_errors
from pocketlm.loading.lock import open_locked
from pocketlm.loading.safetensors import open_weights
from pocketlm.palettize import guided
from pocketlm.palettize.calibration import MANIFEST, VERSION, Calibration, identify, vocabulary
from pocketlm.palettize.hidden import Hidden
from pocketlm.palettize.progress import Progress
from pocketlm.palettize.segments import HIDDEN, Segment, segments
from pocketlm.palettize.text import digest
from pocketlm.palettize.unfinished import JOURNAL, check_room, done_before, moment_file, replace

LOCK = "lock"  # held by the process that is at work


def calibrate(
    model: LoadedModel,
    windows: NDArray[np.uint32],
    target: Path,
    *,
    groups: int = 0,
    threads: int | None = None,
    progress: bool = True,
) -> Calibration:
    """Second moments of ``model`` over ``windows`` [windows, tokens], stored in the new directory ``target``.

    With ``groups``, so many groups of each projection's rows get moments weighted by the loss's gradients
    too (extra ``train``).

    Work happens in ``TARGET.partial-<key>`` and is taken up again by the same call; ``target`` appears when
    it is complete. If it is there already and holds the same, it is opened. Memory stays near that of the
    largest part of the model (a layer's attention or feed-forward, with ``groups`` a layer) with its moments.

    Raises:
        ParameterError: ``target`` exists and holds something else.
        StorageError: the disk is full or read-only, or another process makes the same, or another one with
            this name.
        WeightError: the model, or a gradient, gives numbers that are not finite.
    """
    who = identify(model)
    key = work_key(who, windows, groups)
    place = resolved(target)  # a link stays one: a directory cannot take its name
    partial = place.with_name(f"{place.name}.partial-{key[:12]}")
    if (found := _opened(target, key)) is not None:
        return found
    with storage_errors(target, beside=True):
        partial.mkdir(parents=True, exist_ok=True)
    try:
        lock = open_locked(partial / LOCK)
    except (StorageError, MissingFileError):
        if (found := _opened(target, key)) is not None:  # finished by another process at this moment
            return found
        raise
    with lock:
        if (found := _opened(target, key)) is not None:  # made by another process in the meantime
            shutil.rmtree(partial, ignore_errors=True)
            return found
        try:
            _check_alone(place, partial)
            _fill(model, windows, partial, groups, threads, progress)
        except BaseException as error:
            # Nothing to take up, or the same would come of it. Locked still: nobody else is at work here.
            if isinstance(error, WeightError) or not (partial / JOURNAL).exists():
                shutil.rmtree(partial, ignore_errors=True)
            raise
        facts = {
            "pocketlm_calibration": VERSION,
            "model": who,
            "key": key,
            "tokens": int(windows.size),
            "guided": groups,
            "tokenizer": vocabulary(model),
            "tensors": _tensors(model, groups),
        }
        replace(partial / MANIFEST, facts)
        with storage_errors(target):
            Hidden.remove_all(partial)
            if _opened(target, key) is None:  # else the same has come there by another way
                # With the journal, by which all is resumed, and with the lock, so that nobody else begins.
                partial.rename(place)
                _remove_traces(target)
            else:
                shutil.rmtree(partial, ignore_errors=True)
    return Calibration.open(target)


def work_key(model: str, windows: NDArray[np.uint32], groups: int = 0) -> str:
    """Tells one calibration from another: its model (see :func:`identify`) and all that decides about it."""
    facts = [VERSION, model, digest(windows), groups, guided.SEED]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _opened(target: Path, key: str) -> Calibration | None:
    """The calibration that is there, if there is one."""
    with storage_errors(target):
        if not target.exists():
            return None
    found = Calibration.open(target)
    if found.key != key:
        raise ParameterError(f"{target}: holds the calibration of another model or text")
    with suppress(OSError):  # where it cannot be written, they do no harm
        _remove_traces(target)  # of a kill behind the rename
    return found


def _remove_traces(target: Path) -> None:
    """Deletes what only the making needed."""
    for name in (JOURNAL, LOCK):
        (target / name).unlink(missing_ok=True)


def _check_alone(target: Path, partial: Path) -> None:
    """Refuses to make what could not get its name in the end.

    Raises:
        StorageError: another process makes a calibration of another model or text under the same name.
    """
    with storage_errors(target):
        for other in target.parent.glob(f"{escape(target.name)}.partial-*"):
            if other == partial or not (other / LOCK).exists():
                continue
            try:
                open_locked(other / LOCK).close()
            except StorageError as error:
                raise StorageError(
                    f"{target}: another process makes the calibration of another model or text there"
                ) from error


def _fill(
    model: LoadedModel,
    windows: NDArray[np.uint32],
    partial: Path,
    groups: int,
    threads: int | None,
    progress: bool,
) -> None:
    """Both passes over the parts of the model, from where an earlier run stopped."""
    parts = segments(model.graph)
    wholes = guided.joined(parts) if groups else []
    done, back = done_before(partial, parts, wholes, windows.size, groups)
    check_room(partial, model.graph, parts, wholes, (done, back), windows.size, groups)
    kept = {at for at, _ in wholes}
    # Every part of the model sees every token, which the bar counts.
    times = len(parts) + len(wholes)
    told = f", once for each of {times} parts"
    with Progress("calibrating", windows.size, progress, unit="tokens", times=times, told=told) as bar:
        bar.add(windows.size * (done + back))
        for index in range(done, len(parts)):
            hidden = Hidden.open(partial, index, parts[index], windows.size) if index else None
            _run(model, parts[index], windows, partial, hidden, index, threads, bar)
            replace(partial / JOURNAL, {"parts": index + 1, "back": 0})
            if hidden is not None and index not in kept:
                hidden.remove()
        for index in range(back, len(wholes)):
            at, whole = wholes[-1 - index]
            behind = wholes[-index][0] if index else len(parts)
            guided.run_back(model, at, whole, behind, windows, partial, groups, threads, bar)
            replace(partial / JOURNAL, {"parts": len(parts), "back": index + 1})
            Hidden.remove_at(partial, at, behind)


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
    linears = [op for op in segment.ops if isinstance(op, Linear)]
    wanted = {op.x: graph.ops[op.x].name for op in linears}
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
    for x, name in {op.x: moment_file(graph, op) for op in linears}.items():
        path = partial / name
        with storage_errors(path), path.open("wb") as file:
            np.save(file, sums[x].finish(1 / windows.size))


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


def _tensors(model: LoadedModel, groups: int) -> dict[str, dict[str, Any]]:
    """What the manifest says of each matrix."""
    found: dict[str, dict[str, Any]] = {}
    for index, op in enumerate(model.graph.ops):
        if not isinstance(op, Linear | Embed):
            continue
        name = stored_name(model.store, op.weight)
        entry = found.setdefault(name, {"shape": list(op.weight.shape), "inputs": []})
        if isinstance(op, Linear):
            entry["inputs"].append(moment_file(model.graph, op))
            if groups:
                cuts = guided.row_groups(op.weight.shape[0], groups)
                kept = entry.setdefault("groups", [{"rows": cut, "moments": []} for cut in cuts])
                for number, group in enumerate(kept):
                    group["moments"].append(guided.group_file(index, number))
                entry.setdefault("row_weights", []).append(guided.rows_file(index))
    for name in looked_up(model) & set(found):
        if "row_weights" in found[name]:
            found[name]["row_weights"] = []  # of rows that are looked up as well, products tell half
    return found


def looked_up(model: LoadedModel) -> frozenset[str]:
    """Names, in the files, of the tensors that tokens are looked up in."""
    return frozenset(stored_name(model.store, op.weight) for op in model.graph.ops if isinstance(op, Embed))
