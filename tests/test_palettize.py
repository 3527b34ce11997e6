"""Palettizing models: complete, exact to the byte after interruptions, and refusing what it cannot do."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from checkpoints import bf16, read_safetensors, weights, write_checkpoint, write_sharded
from independent.cases import llama, openelm
from pocketlm.errors import (
    FileFormatError,
    MissingFileError,
    ParameterError,
    StorageError,
    TokenizerError,
    UnsupportedError,
    WeightError,
)
from pocketlm.families import build_graph
from pocketlm.graph import Graph
from pocketlm.interpret.reference import Reference
from pocketlm.loading import open_model
from pocketlm.palettize import Report, palettize, run
from pocketlm.palettize.allocate import allocate
from pocketlm.palettize.calibrate import second_moments
from pocketlm.palettize.recipe import BITS, Candidate

QUIET: dict[str, Any] = {"progress": False}
CONFIGS = {"llama": llama(), "tied": llama(tie_word_embeddings=True), "openelm": openelm()}
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = write_checkpoint(tmp_path / "src")
    (path / "generation_config.json").write_text('{"temperature": 0.6}')
    (path / "secret.py").write_text("not copied")
    return path


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def logits(path: Path) -> NDArray[Any]:
    """Logits of the reference interpreter on a model's (dequantized) weights."""
    model = open_model(path)
    arrays = {name: model.store.dense(name) for name in model.store.names()}
    return Reference(model.graph, arrays).logits([1, 5, 9, 50])


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


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


@pytest.mark.parametrize("bits", [1, 9, 1.99, float("nan"), float("inf"), "4", None, True])
def test_bits_out_of_range(source: Path, tmp_path: Path, bits: Any) -> None:
    with pytest.raises(ParameterError, match="bits"):
        palettize(source, tmp_path / "dst", bits=bits, **QUIET)
    with pytest.raises(ParameterError, match="embedding_bits"):
        palettize(source, tmp_path / "dst", embedding_bits=5 if bits == 1 else bits, **QUIET)
    assert names(tmp_path) == ["src"]


def test_arguments_that_make_no_sense(source: Path, tmp_path: Path) -> None:
    for bad in ("", None, 7, "a\0b"):
        with pytest.raises(ParameterError, match="dst"):
            palettize(source, bad, **QUIET)  # type: ignore[arg-type]
    for threads in (0, -1, "2", True, 1.5):
        with pytest.raises(ParameterError, match="threads"):
            palettize(source, tmp_path / "dst", threads=threads, **QUIET)  # type: ignore[arg-type]
    assert names(tmp_path) == ["src"]


def interrupted(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, after: int, **options: Any
) -> Path:
    """Stops at the tensor number ``after``; returns the partial directory."""
    count = itertools.count()
    real: Callable[..., Any] = run.palettize_tensor

    def limited(*args: Any, **kwargs: Any) -> Any:
        if next(count) == after:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(run, "palettize_tensor", limited)
        with pytest.raises(KeyboardInterrupt):
            palettize(source, target, **options, **QUIET)
    assert not target.exists()
    (partial,) = target.parent.glob(f"{target.name}.partial-*")
    return partial


@pytest.mark.parametrize("bits", [4, 3.5])
def test_interrupted_work_is_resumed_to_the_same_bytes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: float
) -> None:
    palettize(source, tmp_path / "whole", bits=bits, threads=1, **QUIET)
    target = tmp_path / "dst"
    for after in (1, 3, 11):
        interrupted(source, target, monkeypatch, after, bits=bits)
    report = palettize(source, target, bits=bits, **QUIET)
    assert report.resumed >= 15  # what the three runs had finished
    assert content(target) == content(tmp_path / "whole")
    assert names(tmp_path) == ["dst", "src", "whole"]


def test_damage_to_unfinished_work_is_noticed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    palettize(source, tmp_path / "whole", **QUIET)
    target = tmp_path / "dst"
    partial = interrupted(source, target, monkeypatch, 9)
    journal, file = partial / "journal.jsonl", partial / "model.safetensors"
    journal.write_bytes(journal.read_bytes()[:-5])  # cut short by a crash
    middle = len(file.read_bytes()) // 4
    with file.open("r+b") as out:
        out.seek(middle)
        out.write(os.urandom(64))
    palettize(source, target, **QUIET)
    assert content(target) == content(tmp_path / "whole")
    partial = interrupted(source, tmp_path / "third", monkeypatch, 9)
    (partial / "journal.jsonl").write_bytes(b"\xff\0garbage\n[1]\n")
    (partial / "model.safetensors").unlink()
    palettize(source, tmp_path / "third", **QUIET)
    assert content(tmp_path / "third") == content(tmp_path / "whole")


def test_other_work_is_not_resumed(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "dst"
    interrupted(source, target, monkeypatch, 5, bits=4)
    assert palettize(source, target, bits=3, **QUIET).resumed == 0
    assert list(tmp_path.glob("dst.partial-*"))


PROGRAM = (
    "import sys; from pocketlm.palettize import palettize; palettize(*sys.argv[1:], bits=3.5, progress=False)"
)


def test_a_kill_at_any_moment_leaves_no_model_and_costs_no_byte(tmp_path: Path) -> None:
    config = llama(hidden_size=240, intermediate_size=600, num_hidden_layers=6)
    source = write_checkpoint(tmp_path / "src", config)
    palettize(source, tmp_path / "whole", bits=3.5, **QUIET)
    target = tmp_path / "dst"
    for delay in np.linspace(0.0, 0.6, 5):
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(source), str(target)])
        while not list(tmp_path.glob("dst*")) and process.poll() is None:
            time.sleep(0.005)
        time.sleep(float(delay))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if target.exists():  # it was faster
            break
    if not target.exists():
        palettize(source, target, bits=3.5, **QUIET)
    assert content(target) == content(tmp_path / "whole")


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


def test_disks_that_cannot_be_written(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (tmp_path / "file" / "dst", Path("/proc/pocketlm/dst"), Path("/proc/dst")):
        (tmp_path / "file").write_text("x")
        with pytest.raises((StorageError, MissingFileError)):
            palettize(source, place, **QUIET)
    with monkeypatch.context() as patch:
        usage = type("Usage", (), {"free": 1000})
        patch.setattr("shutil.disk_usage", lambda path: usage)
        with pytest.raises(StorageError, match="free"):
            palettize(source, tmp_path / "dst", **QUIET)
    assert not (tmp_path / "dst").exists()


def test_a_disk_that_fills_up(source: Path, tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys\n"
        "from pocketlm.errors import StorageError\n"
        "from pocketlm.palettize import palettize\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try:\n"
        "    palettize(sys.argv[1], sys.argv[2], progress=False)\n"
        "except StorageError as error:\n"
        "    assert 'model.safetensors' in str(error), error\n"
        "    raise SystemExit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(source), str(tmp_path / "dst")], check=False)
    assert done.returncode == 7
    assert not (tmp_path / "dst").exists()
    palettize(source, tmp_path / "dst", **QUIET)


@pytest.mark.parametrize("name", [UP, "model.norm.weight", "model.embed_tokens.weight"])
def test_weights_that_are_not_finite(tmp_path: Path, name: str) -> None:
    arrays = weights(llama())
    arrays[name].flat[arrays[name].size // 2] = np.nan
    source = write_checkpoint(tmp_path / "src", arrays=arrays)
    with pytest.raises(WeightError, match=f"{name}.*not finite"):
        palettize(source, tmp_path / "dst", **QUIET)
    assert not (tmp_path / "dst").exists()
    if name.endswith("embed_tokens.weight"):  # the first: nothing is left that could be resumed
        assert names(tmp_path) == ["src"]


def test_two_at_once_do_not_mix(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = run.palettize_tensor

    def nested(*args: Any, **kwargs: Any) -> Any:
        with pytest.raises(StorageError, match="another process"):
            palettize(source, tmp_path / "dst", **QUIET)
        monkeypatch.setattr(run, "palettize_tensor", real)
        return real(*args, **kwargs)

    monkeypatch.setattr(run, "palettize_tensor", nested)
    palettize(source, tmp_path / "dst", **QUIET)
    open_model(tmp_path / "dst")


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


def losses_of(points: list[list[float]]) -> dict[str, dict[str, float]]:
    kinds = ("p2", "p3", "p4", "p8")
    return {f"t{i}": dict(zip(kinds, sorted(p, reverse=True), strict=True)) for i, p in enumerate(points)}


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    data=st.data(),
)
def test_allocation_is_near_the_best(sizes: list[int], data: st.DataObject) -> None:
    loss = st.floats(0, 100)
    losses = losses_of(
        data.draw(st.lists(st.lists(loss, min_size=4, max_size=4), min_size=len(sizes), max_size=len(sizes)))
    )
    tensors = [Candidate(f"t{i}", (size, 1), False, False, ("x",)) for i, size in enumerate(sizes)]
    budget = data.draw(st.integers(2 * sum(sizes), 8 * sum(sizes)))
    chosen = allocate(tensors, losses, budget)

    def cost(kinds: tuple[str, ...]) -> tuple[int, float]:
        return (
            sum(BITS[kind] * size for kind, size in zip(kinds, sizes, strict=True)),
            sum(losses[f"t{i}"][kind] for i, kind in enumerate(kinds)),
        )

    bits, total = cost(tuple(chosen[t.name] for t in tensors))
    assert bits <= budget
    every = [cost(kinds) for kinds in itertools.product(BITS, repeat=len(sizes))]
    # What is chosen is the best for its own size but for one step, the greatest that any tensor can make.
    step = max(max(points.values()) - min(points.values()) for points in losses.values())
    assert total <= min(loss for size, loss in every if size <= budget) + step + 1e-9


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


def test_the_report_names_its_figures(source: Path, tmp_path: Path) -> None:
    report = palettize(source, tmp_path / "dst", **QUIET)
    assert isinstance(report, Report)
    assert 4.0 < report.bits_per_weight_projections < 8
    assert report.seconds > 0
    assert report.path == tmp_path / "dst"
