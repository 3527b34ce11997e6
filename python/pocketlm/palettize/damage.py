"""What each kind of each tensor costs: the divergence of the model in which only that tensor is palettized.

Divergences of single tensors add up well as long as they are small, so that a recipe's is their sum. A model
too large to run once for every tensor and kind runs for some tensors of each site (``ffn.down`` and so on).
What a nat is worth in relative squared error of the product (the error weighted by the inputs' second
moments, over the energy weighted alike) hardly depends on the kind and changes slowly with depth: between the
measured layers it is interpolated, on a logarithmic scale.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from pocketlm.graph import Graph
from pocketlm.kinds import BITS
from pocketlm.loading import LoadedModel
from pocketlm.palettize.divergence import Divergence
from pocketlm.palettize.forms import Forms
from pocketlm.palettize.progress import Progress
from pocketlm.palettize.recipe import KEEP, Candidate

# Multiply-adds of all runs together: some minutes on two cores.
MOST_WORK = 16e12
_LEAST = 1e-12  # nats; what is not above rounding has no logarithm

Damages = dict[str, dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Found:
    """Nats per token by tensor and kind, and the kinds of tensors of which they are interpolated between
    others', not measured."""

    damages: Damages
    estimated: dict[str, tuple[str, ...]]


class Notes(Protocol):
    """Where measurements are kept, so that interrupted work goes on; as ``DirectoryWriter``."""

    def note(self, name: str) -> dict[str, Any] | None: ...
    def record(self, name: str, facts: Mapping[str, Any]) -> None: ...


@dataclasses.dataclass(frozen=True)
class _Run:
    tensor: Candidate
    kind: str


def measure_damages(
    model: LoadedModel,
    wanted: Mapping[Candidate, Sequence[str]],
    forms: Forms,
    divergence: Divergence,
    relative: Callable[[], Mapping[str, Mapping[str, float]]],
    notes: Notes,
    *,
    progress: bool,
) -> Found:
    """Nats per token of the ``wanted`` kinds of each tensor. ``relative`` gives the relative error of each
    product, by tensor and kind; it is asked only where divergences have to be estimated. To keep a tensor
    costs nothing.

    Raises:
        What :meth:`Divergence.of` raises.
    """
    wanted = {tensor: [kind for kind in kinds if kind != KEEP] for tensor, kinds in wanted.items()}
    runs = [_Run(tensor, kind) for tensor, kinds in wanted.items() for kind in kinds]
    most = int(MOST_WORK // (products(model.graph) * divergence.tokens))
    complete = len(runs) <= most
    if not complete:
        # A tensor that is kept by hand says nothing about the others of its site.
        open_ones = [tensor for tensor, kinds in wanted.items() if kinds]
        runs = [_Run(tensor, _middle(wanted[tensor])) for tensor in sample(open_ones, most)]
    measured: dict[tuple[str, str], float] = {}
    told = f", one matrix palettized in each, over {divergence.tokens:,} tokens"
    with Progress("measuring damage", len(runs), progress, unit="models", told=told) as bar:
        for at, run in enumerate(runs):
            key = f"damage {run.tensor.name} {run.kind}"
            note = notes.note(key)
            if note is None:
                store = forms.overlaid(model.store, {run.tensor: run.kind})
                note = {"kl": divergence.of(store)}
                notes.record(key, note)
            measured[run.tensor.name, run.kind] = note["kl"]
            if at + 1 == len(runs) or runs[at + 1].tensor is not run.tensor:
                forms.drop(run.tensor)
            bar.add(1)
    errors = {} if complete else relative()
    estimated: dict[str, tuple[str, ...]] = {}
    found: Damages = {tensor.name: {KEEP: 0.0} for tensor in wanted}
    for group in _groups([*wanted]):
        known = [
            (at, math.log(max(measured[t.name, kind], _LEAST) / max(errors[t.name][kind], _LEAST)))
            for at, t in enumerate(group)
            for kind in wanted[t]
            if not complete and (t.name, kind) in measured
        ]
        places, logs = [place for place, _ in known], [factor for _, factor in known]
        for at, tensor in enumerate(group):
            for kind in wanted[tensor]:
                if (tensor.name, kind) in measured:
                    found[tensor.name][kind] = measured[tensor.name, kind]
                else:
                    estimated[tensor.name] = (*estimated.get(tensor.name, ()), kind)
                    factor = math.exp(np.interp(at, places, logs))
                    found[tensor.name][kind] = factor * errors[tensor.name][kind]
    return Found(found, estimated)


def _middle(kinds: Sequence[str]) -> str:
    """The kind whose damage is well above rounding, and small enough to add up."""
    return sorted(kinds, key=lambda kind: BITS[kind])[(len(kinds) - 1) // 2]


def products(graph: Graph) -> int:
    """Multiply-adds of a token in the products with weights."""
    return max(1, sum(op.weight.shape[0] * op.weight.shape[1] for op in graph.linears()))


def sample(tensors: Sequence[Candidate], most: int) -> list[Candidate]:
    """About ``most`` of the tensors, at least one of each site and evenly spread over the layers, the first
    and the last before others; in the order of ``tensors``."""
    groups = _groups(tensors)
    chosen = set()
    # Small groups give what they do not need to larger ones.
    left = max(most, len(groups))
    for index, group in enumerate(sorted(groups, key=len)):
        count = min(len(group), max(1, left // (len(groups) - index)))
        left -= count
        places = np.linspace(0, len(group) - 1, count) if count > 1 else np.array([len(group) // 2])
        chosen |= {group[round(place)].name for place in places}
    return [tensor for tensor in tensors if tensor.name in chosen]


def _groups(tensors: Sequence[Candidate]) -> list[list[Candidate]]:
    """Tensors of the same sites, in order of their layers."""
    found: dict[str, list[Candidate]] = {}
    for tensor in tensors:
        sites = sorted({re.sub(r"^layers\.\d+\.", "layers.", site) for site in tensor.sites})
        found.setdefault(" ".join(sites), []).append(tensor)
    return list(found.values())
