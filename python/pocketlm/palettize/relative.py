"""Relative errors of products on a sample of their outputs: quick, and all that is known without a text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pocketlm._core import measure_tensor
from pocketlm.loading import LoadedModel
from pocketlm.palettize.damage import Notes
from pocketlm.palettize.importance import Importance
from pocketlm.palettize.progress import Progress
from pocketlm.palettize.recipe import KEEP, Candidate

_TILES = 32
# Sites whose errors reach the residual stream unnormalised cost more than their own error tells (the priors
# of llama.cpp's mixes and of the published bit allocations agree on these).
_SENSITIVE = re.compile(r"\.(ffn\.down|attn\.v|attn\.qkv|attn\.out)$")
_SENSITIVE_FACTOR = 1.5
_EDGE_FACTOR = 2.0  # the first and the last block
_EMBEDDING_FACTOR = 8.0  # every token meets it at both ends where it is tied; mixes leave it most bits


def relative_errors(
    model: LoadedModel,
    wanted: Mapping[Candidate, Sequence[str]],
    importance: Importance,
    notes: Notes,
    *,
    threads: int | None,
    progress: bool,
) -> dict[str, dict[str, float]]:
    """Weighted squared error over weighted energy of the ``wanted`` kinds of each tensor; 0 for ``keep``."""
    found: dict[str, dict[str, float]] = {}
    with Progress("measuring errors", sum(map(len, wanted.values())), progress, unit="tensors") as bar:
        for tensor, kinds in wanted.items():
            note = f"errors {tensor.name}"
            relative = notes.note(note)
            if relative is None:
                relative = {}
                for kind in kinds:
                    if kind != KEEP:
                        error, energy = measure_tensor(
                            model.store,
                            tensor.name,
                            kind,
                            tiles=_TILES,
                            importance=importance.of(tensor),
                            transposed=tensor.transposed,
                            threads=threads,
                        )
                        relative[kind] = error / energy if energy else 0.0
                model.store.release(tensor.name)
                notes.record(note, relative)
            found[tensor.name] = {KEEP: 0.0} | relative
            bar.add(len(kinds))
    return found


def prior(tensor: Candidate, layers: int) -> float:
    """How much the relative error of a tensor counts beside others, where nothing has measured it."""
    if tensor.is_embedding:
        return _EMBEDDING_FACTOR
    factor = 1.0
    for site in tensor.sites:
        match = re.match(r"layers\.(\d+)\.", site)
        edge = _EDGE_FACTOR if match and int(match[1]) in (0, layers - 1) else 1.0
        factor = max(factor, edge * (_SENSITIVE_FACTOR if _SENSITIVE.search(site) else 1.0))
    return factor


def layer_count(tensors: Sequence[Candidate]) -> int:
    """Layers that the tensors' sites are in."""
    numbers = (re.match(r"layers\.(\d+)\.", site) for tensor in tensors for site in tensor.sites)
    return 1 + max((int(match[1]) for match in numbers if match), default=0)
