"""Which kind each tensor gets, and what calibration says about it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from palettizing import QUIET, UP, content
from pocketlm.errors import (
    FileFormatError,
    MissingFileError,
    ParameterError,
)
from pocketlm.kinds import BITS
from pocketlm.loading import open_model
from pocketlm.palettize import palettize


@pytest.mark.parametrize("bits", [2.3, 2.5, 3.5, 3.7, 5, 6.5])
def test_fractions_are_met_by_mixing(source: Path, tmp_path: Path, bits: float) -> None:
    report = palettize(source, tmp_path / "dst", bits=bits, **QUIET)
    projections = [tensor for tensor in report.tensors if tensor.is_projection]
    elements = sum(tensor.elements for tensor in projections)
    average = sum(BITS[tensor.kind] * tensor.elements for tensor in projections) / elements
    assert average <= bits
    assert average > bits - 4 * max(tensor.elements for tensor in projections) / elements
    assert len({tensor.kind for tensor in projections}) > 1
    open_model(tmp_path / "dst")


def test_bits_alone_choose_the_best_kind(source: Path, tmp_path: Path) -> None:
    report = palettize(source, tmp_path / "dst", bits=2, embedding_bits=2, **QUIET)
    assert {tensor.kind for tensor in report.tensors if len(tensor.shape) == 2} == {"p2v"}
    projections = [tensor for tensor in report.tensors if tensor.is_projection]
    scalar = palettize(
        source, tmp_path / "scalar", recipe=dict.fromkeys(report.recipe, "p2"), bits=2, **QUIET
    )
    errors = {tensor.name: tensor.relative_error for tensor in scalar.tensors}
    assert all(tensor.relative_error < errors[tensor.name] for tensor in projections)


def test_recipes(source: Path, tmp_path: Path) -> None:
    head = "lm_head.weight"
    report = palettize(source, tmp_path / "a", recipe={UP: "p2", head: "keep"}, bits=4, **QUIET)
    assert report.recipe[UP] == "p2"
    assert report.recipe[head] == "keep"
    kinds = {tensor.name: tensor.kind for tensor in report.tensors}
    assert kinds[head] == "f32"
    projections = [tensor for tensor in report.tensors if tensor.is_projection]
    # The others make up for the tensor with fewer bits.
    assert sum(BITS[t.kind] * t.elements for t in projections) > 3.8 * sum(t.elements for t in projections)
    again = palettize(source, tmp_path / "b", recipe=tmp_path / "a" / "recipe.json", bits=4, **QUIET)
    assert again.recipe == report.recipe
    assert content(tmp_path / "a")["model.safetensors"] == content(tmp_path / "b")["model.safetensors"]
    everything = dict.fromkeys(report.recipe, "keep")
    kept = palettize(source, tmp_path / "c", recipe=everything, **QUIET)
    assert {tensor.kind for tensor in kept.tensors} == {"f32"}
    open_model(tmp_path / "c")
    for bad, message in (
        ({"nothing": "p4"}, "nothing"),
        ({UP: "p5"}, "p5"),
        ({UP: 5}, UP),
        ({"model.norm.weight": "p4"}, "norm"),
    ):
        with pytest.raises(ParameterError, match=message):
            palettize(source, tmp_path / "d", recipe=bad, **QUIET)  # type: ignore[arg-type]
    (tmp_path / "r.json").write_text("[")
    with pytest.raises(FileFormatError, match=r"r\.json"):
        palettize(source, tmp_path / "d", recipe=tmp_path / "r.json", **QUIET)
    with pytest.raises(MissingFileError, match="none"):
        palettize(source, tmp_path / "d", recipe=tmp_path / "none", **QUIET)
    # The last that matches decides, so that a name may not stand in two places.
    entries = f'"{UP}": {{"kind": "p4"}}, "{UP}": {{"kind": "p8"}}'
    for text, key in (
        ('{"ffn.*": "p2", "*": "p4", "ffn.*": "p8"}', "ffn.*"),
        (f'{{"pocketlm_recipe": 1, "tensors": {{{entries}}}}}', UP),
        (f'{{"{UP}": {{"kind": "p4", "kind": "p8"}}}}', "kind"),
    ):
        (tmp_path / "r.json").write_text(text)
        with pytest.raises(FileFormatError, match=rf"r\.json: .*{re.escape(repr(key))} is there twice"):
            palettize(source, tmp_path / "d", recipe=tmp_path / "r.json", **QUIET)
    assert not (tmp_path / "d").exists()


def test_importance_helps_where_it_counts(tmp_path: Path) -> None:
    from pocketlm._core import WeightStore, palettize_tensor

    rng = np.random.default_rng(3)
    matrix = rng.standard_normal((64, 256)).astype(np.float32)
    inputs = (rng.standard_normal((500, 256)) * np.exp(rng.standard_normal(256))).astype(np.float32)
    store = WeightStore()
    store.add("w", matrix)
    importance = (inputs.astype(np.float64) ** 2).mean(axis=0).astype(np.float32)
    errors = {}
    for name, h in (("plain", None), ("weighted", importance)):
        made = palettize_tensor(store, "w", "p2", importance=h)
        store.add_palette(name, "p2", (64, 256), made.codes, made.codebook, made.scale)
        errors[name] = float((((store.dense(name) - matrix) @ inputs.T) ** 2).mean())
    assert errors["weighted"] < 0.95 * errors["plain"]
