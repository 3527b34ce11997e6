"""Which kind each tensor gets, and what calibration says about it."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints import weights
from independent.cases import openelm
from palettizing import QUIET, UP, content, interrupted
from pocketlm.errors import (
    FileFormatError,
    MissingFileError,
    ParameterError,
    TokenizerError,
)
from pocketlm.families import build_graph
from pocketlm.graph import Graph
from pocketlm.interpret.reference import Reference
from pocketlm.kinds import BITS
from pocketlm.loading import open_model
from pocketlm.palettize import palettize
from pocketlm.palettize.calibrate import chunks, read_calibration, second_moments


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
        ({UP: 4}, UP),
        ({"model.norm.weight": "p4"}, "norm"),
    ):
        with pytest.raises(ParameterError, match=message):
            palettize(source, tmp_path / "d", recipe=bad, **QUIET)  # type: ignore[arg-type]
    (tmp_path / "r.json").write_text("[")
    with pytest.raises(FileFormatError, match=r"r\.json"):
        palettize(source, tmp_path / "d", recipe=tmp_path / "r.json", **QUIET)
    with pytest.raises(MissingFileError, match="none"):
        palettize(source, tmp_path / "d", recipe=tmp_path / "none", **QUIET)
    assert not (tmp_path / "d").exists()


def test_calibration_counts_what_each_projection_reads() -> None:
    config = openelm()
    arrays = weights(config)
    graph: Graph = build_graph(config)
    reference = Reference(graph, arrays)
    runs = [[1, 2, 3, 4, 5], [7], [9, 8]]
    from pocketlm._core import WeightStore

    store = WeightStore()
    for name, array in arrays.items():
        store.add(name, array)
    moments = second_moments(graph, store, reference.trace, runs)
    assert set(moments) == {op.weight.name for op in graph.linears()}
    for op in graph.linears():
        inputs = np.concatenate([reference.trace(ids)[graph.ops[op.x].name] for ids in runs])
        np.testing.assert_allclose(moments[op.weight.name], (inputs**2).mean(axis=0), rtol=1e-5)


def test_calibration_text_is_run_through_the_engine(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = " ".join(f"w{i * 7 % 97}" for i in range(1500))
    (tmp_path / "text.txt").write_text(text)
    options: dict[str, Any] = {"bits": 3.5, **QUIET}
    palettize(source, tmp_path / "plain", **options)
    palettize(source, tmp_path / "list", calibration=[text], threads=1, **options)
    from_file = {**options, "calibration": tmp_path / "text.txt"}
    del from_file["progress"]
    partial = interrupted(source, tmp_path / "file", monkeypatch, 4, **from_file)
    assert (partial / "importance.npz").exists()
    palettize(source, tmp_path / "file", calibration=tmp_path / "text.txt", **options)
    assert content(tmp_path / "file") == content(tmp_path / "list")
    assert content(tmp_path / "file")["model.safetensors"] != content(tmp_path / "plain")["model.safetensors"]
    for bad in ([], [""], [7]):
        with pytest.raises(ParameterError, match="calibration"):
            palettize(source, tmp_path / "x", calibration=bad, **QUIET)  # type: ignore[arg-type]
    with pytest.raises(MissingFileError, match="nothing"):
        palettize(source, tmp_path / "x", calibration=tmp_path / "nothing", **QUIET)
    (tmp_path / "latin").write_bytes(b"caf\xe9 " * 10)
    with pytest.raises(FileFormatError, match=r"latin: not UTF-8.*byte 3"):
        palettize(source, tmp_path / "x", calibration=tmp_path / "latin", **QUIET)
    (source / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match="tokenizer"):
        palettize(source, tmp_path / "x", calibration=[text], **QUIET)


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


def test_of_a_large_text_the_beginning_is_read(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "large.txt"
    with file.open("wb") as out:
        out.write("日本 ".encode() * 400_000)  # its limit falls into a character
        out.truncate(8 << 30)  # takes no space on the disk
    (text,) = read_calibration(file)
    assert len(text.encode()) in range((1 << 20) - 3, (1 << 20) + 1) and set(text) == set("日本 ")
    # However long the texts, no more is tokenized than is used.
    monkeypatch.setattr("pocketlm.palettize.calibrate.MAX_TOKENS", 100)
    model, seen = open_model(source), 0

    class Counting:
        def encode(self, piece: str) -> Any:
            nonlocal seen
            seen += len(piece)
            return model.tokenizer.encode(piece)

    counted = types.SimpleNamespace(tokenizer=Counting())
    runs = list(chunks(counted, [" ".join(["w5"] * 1_000_000)], 32))  # type: ignore[arg-type]
    assert [len(ids) for ids in runs] == [32, 32, 32, 4] and seen < 100_000
