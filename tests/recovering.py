"""What the tests of training behind palettization share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from palettizing import tree
from pocketlm.palettize import palettize
from pocketlm.palettize.report import Report

TEXT = [" ".join(f"w{i}" for i in np.random.default_rng(1).zipf(1.5, 4000) % 97)]


def params_of(model: Any) -> dict[str, Any]:
    """The weights of a model as the interpreter takes them."""
    return {n: jnp.asarray(model.store.dense(n)) for n in model.graph.weights()}


def on_unseen_text(models: Iterable[Any], compute: Callable[..., Any]) -> list[Any]:
    """``compute(graph, params, ids)`` of each model, on text that no training has seen."""
    ids = jnp.asarray(np.random.default_rng(3).zipf(1.5, (16, 60)) % 97)
    return [compute(model.graph, params_of(model), ids) for model in models]


def check_resumed(source: Path, target: Path, whole: Report, unbroken: Path, **options: Any) -> None:
    """Interrupted work goes on in ``target``, and ends as in ``unbroken``, of which ``whole`` reports."""
    again = palettize(source, target, **options)
    assert again.recovery == whole.recovery
    assert tree(target) == tree(unbroken)
