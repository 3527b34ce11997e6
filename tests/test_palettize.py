"""Palettizing models: complete, and refusing what it cannot do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from checkpoints import bf16, read_safetensors, weights, write_checkpoint, write_sharded
from independent.cases import llama, openelm
from palettizing import QUIET, UP, content, names
from pocketlm.errors import (
    MissingFileError,
    ParameterError,
    UnsupportedError,
    WeightError,
)
from pocketlm.families import build_graph
from pocketlm.interpret.reference import Reference
from pocketlm.loading import open_model
from pocketlm.palettize import Report, palettize, plan, run
from pocketlm.palettize.places import check_places

TEXT = [" ".join(f"w{i * 7 % 97}" for i in range(1400))]
CONFIGS = {"llama": llama(), "tied": llama(tie_word_embeddings=True), "openelm": openelm()}


def logits(path: Path) -> NDArray[Any]:
    """Logits of the reference interpreter on a model's (dequantized) weights."""
    model = open_model(path)
    arrays = {name: model.store.dense(name) for name in model.store.names()}
    return Reference(model.graph, arrays).logits([1, 5, 9, 50])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_a_palettized_model_is_complete(tmp_path: Path, config: dict[str, Any], dtype: str) -> None:
    arrays = weights(config)
    stored = {"f32": arrays, "f16": {k: v.astype(np.float16) for k, v in arrays.items()}}.get(dtype) or {
        k: bf16(v) for k, v in arrays.items()
    }
    report = palettize(write_sharded(tmp_path / "src", config, stored), tmp_path / "dst", **QUIET)
    assert sorted(content(tmp_path / "dst")) == [
        "config.json",
        "model.safetensors",
        "recipe.json",
        "tokenizer.json",
    ]
    model, original = open_model(tmp_path / "dst"), open_model(tmp_path / "src")
    assert model.graph == original.graph
    assert set(model.store.names()) == set(original.store.names())
    for tensor in report.tensors:
        before, after = original.store.dense(tensor.name), model.store.dense(tensor.name)
        info = model.store.info(tensor.name)
        assert (info.kind, info.shape, info.bytes) == (tensor.kind, tensor.shape, tensor.bytes)
        if len(tensor.shape) == 1:
            assert tensor.kind == dtype
            np.testing.assert_array_equal(before, after)
        else:
            embedding = "embed" in tensor.name or "lm_head" in tensor.name
            assert tensor.kind == ("p8" if embedding else "p4")
            error = ((before - after) ** 2).sum() / (before**2).sum()
            assert error == pytest.approx(tensor.relative_error, rel=1e-3)
            assert error < (3e-4 if embedding else 0.012)
    header, _, start = read_safetensors(tmp_path / "dst" / "model.safetensors")
    for name, entry in header.items():
        if name.endswith(".codes"):
            assert (start + entry["data_offsets"][0]) % 64 == 0
    assert report.parameters == sum(a.size for a in arrays.values())
    assert report.bytes == sum(model.store.info(name).bytes for name in model.store.names())
    assert report.bits_per_weight_all == pytest.approx(8 * report.bytes / report.parameters)
    assert json.loads((tmp_path / "dst" / "recipe.json").read_text()) == report.recipe
    exact, close = logits(tmp_path / "src"), logits(tmp_path / "dst")
    assert np.corrcoef(exact.ravel(), close.ravel())[0, 1] > 0.94


def test_what_is_written_beside_the_weights(source: Path, tmp_path: Path) -> None:
    report = palettize(source, tmp_path / "dst", bits=3, embedding_bits=4, **QUIET)
    files = content(tmp_path / "dst")
    assert "secret.py" not in files
    assert files["generation_config.json"] == b'{"temperature": 0.6}'
    section = json.loads(files["config.json"])["pocketlm"]
    assert section["bits"] == 3
    assert section["format_version"] == 1
    assert section["bits_per_weight_all"] == pytest.approx(report.bits_per_weight_all, abs=1e-4)
    assert {tensor.kind for tensor in report.tensors} == {"p3", "p4", "f32"}
    assert names(tmp_path) == ["dst", "src"]


@pytest.mark.parametrize("bits", [1, 9, 1.99, float("nan"), float("inf"), "4", True])
def test_bits_out_of_range(source: Path, tmp_path: Path, bits: Any) -> None:
    with pytest.raises(ParameterError, match="bits"):
        palettize(source, tmp_path / "dst", bits=bits, **QUIET)
    with pytest.raises(ParameterError, match="embedding_bits"):
        palettize(source, tmp_path / "dst", embedding_bits=5 if bits == 1 else bits, **QUIET)
    assert names(tmp_path) == ["src"]


def test_arguments_that_make_no_sense(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for bad in ("", None, 7, "a\0b"):
        with pytest.raises(ParameterError, match="dst"):
            palettize(source, bad, **QUIET)  # type: ignore[arg-type]
    for threads in (0, -1, 257, 2**70, "2", True, 1.5):
        with pytest.raises(ParameterError, match="threads"):
            palettize(source, tmp_path / "dst", threads=threads)  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""  # refused before it says that it begins
    assert names(tmp_path) == ["src"]


def test_destinations(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "deep" / "dst"
    palettize(source, target, **QUIET)
    before = content(target)
    with pytest.raises(ParameterError, match="exists already"):
        palettize(source, target, bits=2, **QUIET)
    assert content(target) == before
    palettize(source, target, bits=2, overwrite=True, **QUIET)
    assert content(target) != before
    assert names(target.parent) == ["dst"]
    (tmp_path / "void").mkdir()
    palettize(source, tmp_path / "void", **QUIET)
    (tmp_path / "file").write_text("x")
    for bad in (source, source / "inner", tmp_path, "/"):
        with pytest.raises(ParameterError, match=r"outside of|exists"):
            palettize(source, bad, overwrite=True, **QUIET)
    with pytest.raises(ParameterError, match="not a directory"):
        palettize(source, tmp_path / "file", overwrite=True, **QUIET)
    with pytest.raises(UnsupportedError, match="palettized already"):
        palettize(target, tmp_path / "again", **QUIET)
    with pytest.raises(MissingFileError, match="nowhere"):
        palettize(tmp_path / "nowhere", tmp_path / "again", **QUIET)


def test_a_link_is_followed_and_stays(source: Path, tmp_path: Path) -> None:
    far, link = tmp_path / "far" / "model", tmp_path / "link"
    link.symlink_to(far)
    assert palettize(source, link, **QUIET).path == link  # which leads to nothing yet
    before = content(far)
    with pytest.raises(ParameterError, match=f"^{link}: exists already"):
        palettize(source, link, bits=2, **QUIET)
    palettize(source, link, bits=2, overwrite=True, **QUIET)
    assert link.is_symlink() and content(far) != before and content(link) == content(far)
    void = tmp_path / "far" / "void"
    void.mkdir()
    (tmp_path / "other").symlink_to(void)
    palettize(source, tmp_path / "other", bits=2, **QUIET)
    assert content(void) == content(far)
    cal = tmp_path / "far" / "cal"
    (tmp_path / "stored").symlink_to(cal)
    for _ in range(2):  # made, and opened again
        plan(source, calibration=TEXT, calibration_out=tmp_path / "stored", recipe={"*": 4}, **QUIET)
    assert (tmp_path / "stored").is_symlink() and "calibration.json" in names(cal)
    assert names(tmp_path) == ["far", "link", "other", "src", "stored"]
    assert names(tmp_path / "far") == ["cal", "model", "void"]


@pytest.mark.parametrize("name", [UP, "model.norm.weight", "model.embed_tokens.weight"])
def test_weights_that_are_not_finite(tmp_path: Path, name: str) -> None:
    arrays = weights(llama())
    arrays[name].flat[arrays[name].size // 2] = np.nan
    source = write_checkpoint(tmp_path / "src", arrays=arrays)
    with pytest.raises(WeightError, match=f"{name}.*not finite"):
        palettize(source, tmp_path / "dst", **QUIET)
    assert not (tmp_path / "dst").exists()
    assert names(tmp_path) == ["src"]  # the same would come of it again


def test_memory_stays_near_the_largest_tensor(tmp_path: Path) -> None:
    config = llama(
        hidden_size=1024,
        intermediate_size=2048,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(2048 * 1024).astype(np.float32)
    shapes = {name: weight.shape for name, weight in build_graph(config).weights().items()}
    arrays = {name: noise[: np.prod(shape)].reshape(shape) for name, shape in shapes.items()}
    source = write_checkpoint(tmp_path / "src", config, arrays)
    del arrays
    assert (source / "model.safetensors").stat().st_size > 180 << 20
    program = (
        "import resource, sys\n"
        "from pocketlm.palettize import palettize\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "palettize(*sys.argv[1:], bits=2, progress=False)\n"
        "print(peak() - before)\n"
    )
    command = [sys.executable, "-c", program, str(source), str(tmp_path / "dst")]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) << 10
    assert grown < 4 * (2048 * 1024 * 4)  # the largest tensor has 8 MiB


def test_results_do_not_get_in_each_others_way(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("work has begun")

    target = tmp_path / "made" / "dst"
    with monkeypatch.context() as patch:
        patch.setattr(run.Work, "plan", never)
        for place in (target, target / "cal", target.parent, source, source / "cal", tmp_path):
            with pytest.raises(ParameterError, match=f"^calibration_out: {place} must be outside"):
                palettize(source, target, calibration=TEXT, calibration_out=place, overwrite=True, **QUIET)
        for place in (target, target / "r.json", source / "r.json", tmp_path / "cal"):
            settings: dict[str, Any] = {"calibration": TEXT, "calibration_out": tmp_path / "cal", **QUIET}
            with pytest.raises(ParameterError, match=f"^recipe_out: {place} must be outside"):
                palettize(source, target, recipe_out=place, **settings)
        with pytest.raises(MissingFileError, match=r"^recipe_out: .*nowhere"):
            palettize(source, target, recipe_out=tmp_path / "nowhere" / "r.json", **QUIET)
        with pytest.raises(ParameterError, match=r"recipe_out: .* is a directory"):
            (tmp_path / "folder").mkdir()
            palettize(source, target, recipe_out=tmp_path / "folder", **QUIET)
        for name in ("calibration_out", "recipe_out"):
            with pytest.raises(ParameterError, match=f"^{name}: .*src.x must be outside"):
                plan(source, calibration=TEXT, **{name: source / "x"}, **QUIET)
    assert names(tmp_path) == ["folder", "src"] and "x" not in names(source)
    # Directories around the model are made before the recipe is written.
    check_places(source, target, None, target.parent / "r.json")


def test_the_report_names_its_figures(source: Path, tmp_path: Path) -> None:
    report = palettize(source, tmp_path / "dst", **QUIET)
    assert isinstance(report, Report)
    assert 4.0 < report.bits_per_weight_projections < 8
    assert report.seconds > 0
    assert report.path == tmp_path / "dst"
