"""What kinds cost in time on this machine: the profile of a palettized form of the model, in memory."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pocketlm._core import WeightStore, cpu_count, current_isa
from pocketlm.adapters.attach import LowRank, attach
from pocketlm.graph import Graph, Weight
from pocketlm.loading import LoadedModel
from pocketlm.loading.files import write_whole
from pocketlm.palettize.damage import Notes
from pocketlm.palettize.forms import Forms
from pocketlm.palettize.progress import Progress
from pocketlm.palettize.recipe import Candidate

_PROMPT, _REPEATS = 32, 5
_CONTEXT = 512  # tokens that the cache of the profiled model holds
# Of the times of steps: so long the nearest speed that an error names can be asked for. They are those of
# the moment, so not for long.
_KEPT_SECONDS = 3600.0


@dataclasses.dataclass(frozen=True)
class Speeds:
    """Times of a decode step.

    Attributes:
        seconds: of all products with a tensor, by tensor and kind.
        rest: seconds of everything else, the products of an adapter among it.
    """

    seconds: dict[str, dict[str, float]]
    rest: float


def measure_speeds(
    model: LoadedModel,
    tensors: Sequence[Candidate],
    kind: str,
    forms: Forms,
    notes: Notes,
    *,
    adapter: Mapping[str, int],
    int8: bool,
    threads: int | None,
    progress: bool,
) -> Speeds:
    """Measures the model with all ``tensors`` as ``kind``, and from that what every other kind would take
    (see :mod:`pocketlm.profile`). ``adapter`` has the ranks of the terms of a recovery adapter by tensor, as
    ``int8`` or 16-bit floats; its numbers are random.

    Times of products come from this user's cache where it has them, and so do those of the last hour.
    """
    note = notes.note("speeds")
    if note is not None:
        return Speeds(note["seconds"], note["rest"])
    names = [tensor.name for tensor in tensors]
    graph, weights = _with_adapter(model.graph, adapter, "p8" if int8 else "f16")
    facts = [kind, names, [[w.name, w.shape, k] for w, k in weights.items()], threads]
    path = _path(model, graph, facts, threads)
    speeds = _read(path, names)
    if speeds is None:
        with Progress("measuring times", 100, progress, unit="percent") as bar:
            speeds = _measured(model, tensors, kind, forms, graph, weights, threads, bar)
        if path is not None:
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, json.dumps({"at": time.time(), **dataclasses.asdict(speeds)}))
    notes.record("speeds", dataclasses.asdict(speeds))
    return speeds


def _with_adapter(graph: Graph, ranks: Mapping[str, int], kind: str) -> tuple[Graph, dict[Weight, str]]:
    """The graph with an adapter, and the weights of that."""
    terms = {name: LowRank(f"{name}.lora_A", f"{name}.lora_B", rank) for name, rank in ranks.items()}
    attached = attach(graph, terms)
    added = {name for term in terms.values() for name in (term.a, term.b)}
    return attached, {w: kind for name, w in attached.weights().items() if name in added}


def _measured(
    model: LoadedModel,
    tensors: Sequence[Candidate],
    kind: str,
    forms: Forms,
    graph: Graph,
    adapter: dict[Weight, str],
    threads: int | None,
    bar: Progress,
) -> Speeds:
    # Imported here: only this runs a model for its speed.
    from pocketlm._core import Engine, Sampler
    from pocketlm.describe import describe
    from pocketlm.model import LM
    from pocketlm.profile.double import random_store
    from pocketlm.profile.run import profile
    from pocketlm.tokenizer import Tokenizer

    store: WeightStore = forms.overlaid(model.store, dict.fromkeys(tensors, kind))
    if adapter:
        store = store.overlay(random_store(adapter))
    loaded = dataclasses.replace(model, store=store, graph=graph)
    context = min(_CONTEXT, graph.context_length)
    engine = Engine(graph.to_json(), store, threads=threads, cache_tokens=2 * context)
    seen = 0

    def told(done: int, total: int) -> None:
        nonlocal seen
        reached = max(seen, 100 * done // max(1, total))  # of how many is known better and better
        bar.add(reached - seen)
        seen = reached

    with LM(
        engine,
        lambda: Tokenizer.of(loaded),
        Sampler,
        context=context,
        describe=lambda: describe(graph, store),
        name=model.path.name,
        loaded=loaded,
    ) as lm:
        found = profile(lm, prompt=min(_PROMPT, context), repeats=_REPEATS)
        matrices = {matrix.name: matrix for matrix in found.measure_kinds(told)}
        now = sum(matrix.decode[matrix.current] for matrix in matrices.values())
        seconds = {tensor.name: matrices[tensor.name].decode for tensor in tensors}
        return Speeds(seconds, max(0.0, found.decode.seconds - now))


def _path(model: LoadedModel, graph: Graph, facts: list[Any], threads: int | None) -> Path | None:
    """Where times are kept that depend on these ``facts``; ``None`` for a user without a place."""
    from pocketlm.profile.costs import cache_directory
    from pocketlm.profile.machine import fingerprint, processor_name

    directory = cache_directory()
    if directory is None:
        return None
    machine = fingerprint(processor_name(), current_isa(), threads or cpu_count())
    others = {name: model.store.info(name).kind for name in model.store.names()}
    about = json.dumps([graph.to_json(), others, *facts, _PROMPT, _REPEATS, _CONTEXT])
    return directory / f"steps-{machine}-{hashlib.sha256(about.encode()).hexdigest()[:16]}.json"


def _read(path: Path | None, names: Sequence[str]) -> Speeds | None:
    """Times of the last hour; a cache that cannot be used is no error."""
    if path is None:
        return None
    try:
        found: Any = json.loads(path.read_text())
        if not 0 <= time.time() - float(found["at"]) < _KEPT_SECONDS:
            return None
        times = {name: {str(k): _time(v) for k, v in found["seconds"][name].items()} for name in names}
        return Speeds(times, _time(found["rest"]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def _time(value: Any) -> float:
    if not 0 <= (number := float(value)) < 1e3:
        raise ValueError("no time")
    return number
