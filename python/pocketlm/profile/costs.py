"""What a model's products take with each kind of weight on this machine: measured, and kept.

Doubles of the model with random weights, each of one kind, run in turn for some steps, again and again:
whatever else the machine does meanwhile meets all of them, and what is compared was measured within moments.
Of a model that no cache holds, some layers are enough: the others' products are like theirs, or between them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np

from pocketlm.adapters.attach import is_adapter
from pocketlm.graph import Graph, Linear
from pocketlm.loading.files import write_whole
from pocketlm.profile.measure import Floats
from pocketlm.profile.shorter import linear_sites, shorter
from pocketlm.profile.stand_in import Setting, StandIn

Seconds = tuple[float, float]  # of a decode step, and of a prefill
Times = dict[str, dict[str, Seconds]]  # by kind and operation
Progress = Callable[[int, int], object]

_METHOD = 2  # another one's times are no longer used
_MOST_WEIGHTS = 256 << 20  # of the layers of a double: at 2 bits each, more than most caches hold
_LONG_AGO = 64  # tokens in the cache of such a double: what they bring into the caches does not stay there
_SECONDS = 4.0  # of all rounds, about
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 60
_DECODES, _PREFILLS = 10, 1  # steps of a turn
_HELD_BYTES = 512 << 20  # of doubles that are kept between their turns


class Costs:
    """Times of a model's products by kind, from the cache of this machine where it has them.

    Args:
        graph: of the model.
        kinds: what the products' weights are now, by operation; adapters stay that.
        setting: of the steps.
        fingerprint: of the machine and its engine.
        directory: of the cache; ``None`` keeps nothing.
    """

    def __init__(
        self,
        graph: Graph,
        kinds: Mapping[str, str],
        setting: Setting,
        fingerprint: str,
        directory: Path | None,
    ) -> None:
        self._whole, self._graph = graph, shorter(graph, _MOST_WEIGHTS)
        if self._graph is not graph:
            setting = dataclasses.replace(setting, context=min(setting.context, _LONG_AGO))
        self._now, self._setting = dict(kinds), setting
        about = json.dumps([_METHOD, self._graph.to_json(), self._adapters, dataclasses.asdict(setting)])
        name = f"products-{fingerprint}-{hashlib.sha256(about.encode()).hexdigest()[:16]}.json"
        self._path = None if directory is None else directory / name
        self._times: Times = {}

    @property
    def _adapters(self) -> dict[str, str]:
        return {op.name: self._now[op.name] for op in self._graph.linears() if is_adapter(op)}

    def measure(self, kinds: Sequence[str], progress: Progress | None = None) -> None:
        """Measures what :meth:`seconds` needs for these kinds, all together, unless it is known."""
        names = [op.name for op in self._graph.linears()]
        times = _read(self._path, kinds, names)
        if not times:
            times = self._measured(kinds, progress)
            _write(self._path, times)
        self._times = {kind: self._completed(times[kind]) for kind in kinds}

    def seconds(self, name: str, kind: str) -> Seconds:
        """Seconds of a product in a decode step, and in the prefill of a chunk."""
        return self._times[kind][name]

    def _completed(self, times: Mapping[str, Seconds]) -> dict[str, Seconds]:
        """Times of all layers' products: of those left out by size, between those of the same site."""
        found = dict(times)
        measured = linear_sites(self._graph)
        for site, ops in linear_sites(self._whole).items():
            known: dict[int, list[Seconds]] = {}
            for op in measured[site]:
                known.setdefault(_elements(op), []).append(times[op.name])
            sizes = sorted(known)
            means = [np.mean(known[size], axis=0) for size in sizes]
            for op in ops:
                if op.name not in times:
                    at = _elements(op)
                    one, two = (float(np.interp(at, sizes, [mean[i] for mean in means])) for i in (0, 1))
                    found[op.name] = one, two
        return found

    def _measured(self, kinds: Sequence[str], progress: Progress | None) -> Times:
        found: dict[str, list[list[Floats]]] = {kind: [[], []] for kind in kinds}
        rounds, done, began = _LEAST_ROUNDS, 0, time.monotonic()
        with ExitStack() as stack:
            held: dict[str, StandIn] = {}
            while done < rounds:
                for turn, kind in enumerate(kinds):
                    if progress is not None:
                        progress(done * len(kinds) + turn, rounds * len(kinds))
                    one = held.get(kind) or self._stand_in(kind)
                    if kind not in held and one.bytes + sum(o.bytes for o in held.values()) <= _HELD_BYTES:
                        held[kind] = one
                        stack.callback(one.close)
                    try:
                        found[kind][0].append(one.decode(_DECODES))
                        found[kind][1].append(one.prefill(_PREFILLS))
                    finally:
                        if kind not in held:
                            one.close()
                done += 1
                wanted = round(done * _SECONDS / (time.monotonic() - began))
                rounds = max(_LEAST_ROUNDS, min(_MOST_ROUNDS, wanted))
        if progress is not None:
            progress(done * len(kinds), done * len(kinds))
        names = [op.name for op in self._graph.ops]
        times: Times = {}
        for kind, steps in found.items():
            decode, prefill = (_least_disturbed(np.concatenate(step)) for step in steps)
            both = zip(names, decode, prefill, strict=False)  # what follows the operations is no product
            times[kind] = {name: (float(one), float(two)) for name, one, two in both}
        return times

    def _stand_in(self, kind: str) -> StandIn:
        kinds = dict.fromkeys((op.name for op in self._graph.linears()), kind)
        return StandIn(self._graph, {**kinds, **self._adapters}, self._setting)


def _elements(op: Linear) -> int:
    return op.weight.shape[0] * op.weight.shape[1]


def _least_disturbed(times: Floats) -> Floats:
    """Means over the fastest quarter of the steps, of [steps, operations]."""
    totals = times.sum(axis=1)
    found: Floats = times[totals <= np.quantile(totals, 0.25)].mean(axis=0)
    return found


def cache_directory() -> Path | None:
    """Where this user's measurements are kept; ``None`` for a user without a home."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    if root and Path(root).is_absolute():
        return Path(root) / "pocketlm"
    try:
        return Path.home() / ".cache" / "pocketlm"
    except RuntimeError:  # no HOME, and a user that the system does not know
        return None


def _read(path: Path | None, kinds: Sequence[str], names: Sequence[str]) -> Times:
    """What was measured before, if it is all that is asked for; a cache that cannot be used is no error."""
    if path is None:
        return {}
    try:
        found: Any = json.loads(path.read_text())
        times = {kind: {name: _pair(found[kind][name]) for name in names} for kind in kinds}
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return {}
    return times


def _pair(values: Any) -> Seconds:
    one, two = map(float, values)
    if not (0 < one < 1e3 and 0 < two < 1e3):
        raise ValueError("no time")
    return one, two


def _write(path: Path | None, times: Times) -> None:
    """Keeps measurements, whole or not at all."""
    if path is None:
        return
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(times, indent=1))
