"""Training behind palettization: learns, keeps to the format, resumes to the same bytes, and fails closed."""

from __future__ import annotations

import builtins
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pocketlm
from checkpoints import weights, write_checkpoint
from independent.cases import llama, openelm
from palettizing import QUIET, names, stopped, tree
from pocketlm import _core
from pocketlm.errors import (
    AdapterError,
    MissingFileError,
    ParameterError,
    UnsupportedError,
)
from pocketlm.interpret import jax as interpreter
from pocketlm.loading import open_model
from pocketlm.palettize import distil, palettize, recover_train, recovery, student
from pocketlm.palettize.recovery import Recovery
from recovering import TEXT, check_resumed, on_unseen_text

SMALL = {"num_hidden_layers": 1, "max_position_embeddings": 64}
ONE: dict[str, Any] = {
    "max_context_length": 64,
    "num_transformer_layers": 1,
    "num_query_heads": [4],
    "num_kv_heads": [2],
    "qkv_multipliers": [0.5],
    "ffn_multipliers": [1.4],
}
pytestmark = pytest.mark.usefixtures("few")
OPTIONS: dict[str, Any] = {"calibration": TEXT, "recover_text": TEXT, "recover_train": 100_000, **QUIET}


@given(
    st.integers(1, 40), st.integers(1, 30), st.sampled_from(["p2", "p2v", "p3", "p4"]), st.integers(0, 999)
)
@settings(max_examples=12)
def test_codes_and_their_gradient(rows: int, cols: int, kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    store = _core.WeightStore()
    store.add("w", rng.standard_normal((rows, cols)).astype(np.float32))
    packed = _core.palettize_tensor(store, "w", kind)
    made = _core.WeightStore()
    made.add_palette("w", kind, (rows, cols), packed.codes, packed.codebook, packed.scale)
    dense = made.dense("w")
    codes = jnp.asarray(student.split_palette(dense, packed.scale, packed.codebook, kind))
    book = jnp.asarray(packed.codebook, jnp.float32)
    entries = np.asarray(student.unfold(codes, book, kind, cols))
    np.testing.assert_array_equal(entries * packed.scale.astype(np.float32)[:, None], dense)
    factors = rng.standard_normal((rows, cols)).astype(np.float32)
    slope = jax.grad(lambda b: (student.unfold(codes, b, kind, cols) * factors).sum())(book)
    # The sum is linear in the codebook: its slope times any step is what the step adds.
    step = jnp.asarray(rng.integers(-3, 4, book.shape), jnp.float32)
    added = ((np.asarray(student.unfold(codes, book + step, kind, cols)) - entries) * factors).sum()
    assert float((slope * step).sum()) == pytest.approx(float(added), abs=1e-2)
    assert slope.shape == book.shape


def test_activations_are_read_as_the_engine_reads_them(tmp_path: Path) -> None:
    config = llama(hidden_size=300, num_attention_heads=3, num_hidden_layers=1)
    palettize(write_checkpoint(tmp_path / "src", config), tmp_path / "m", bits=4, **QUIET)
    model = open_model(tmp_path / "m")
    ids = np.random.default_rng(0).integers(0, 97, 20)
    read_by, head = student.reader(model.graph), model.graph.head()
    traced = _core.Engine(model.graph.to_json(), model.store, cache_tokens=64).trace(ids)
    for op in model.graph.linears():
        x = traced[model.graph.ops[op.x].name]
        read = np.asarray(read_by(op, jnp.asarray(x)))
        if op is head:
            assert np.array_equal(read, x)  # which the engine's two terms come near to:
            first = np.asarray(student.read_int8(jnp.asarray(x)))
            read = first + np.asarray(student.read_int8(jnp.asarray(x - first)))
        y = read.astype(np.float64) @ model.store.dense(op.weight.name).T
        assert np.abs(y - traced[op.name]).max() < 1e-5 * np.abs(y).max(), op.name
    slopes = jax.grad(lambda v: (student.read_int8(v) * 3).sum())(jnp.ones((2, 300)))
    np.testing.assert_array_equal(slopes, np.full((2, 300), 3.0))


def test_the_divergence_is_that_of_kullback_and_leibler() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((3, 5, 11)).astype(np.float32) for _ in range(2))
    p, q = (
        np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (a.astype(np.float64), b.astype(np.float64))
    )
    expected = (p * np.log(p / q)).sum(-1).mean()
    assert float(distil.divergence(jnp.asarray(a), jnp.asarray(b))) == pytest.approx(expected, rel=1e-4)
    assert float(distil.divergence(jnp.asarray(a), jnp.asarray(a + 7))) == pytest.approx(0, abs=1e-6)


def test_every_window_is_seen_once_in_each_pass() -> None:
    windows = np.arange(7, dtype=np.uint32)[:, None]
    stream = distil.batches(windows, 3, seed=1)
    seen = np.concatenate([next(stream) for _ in range(7)]).ravel()
    passes = seen.reshape(3, 7)
    for one in passes:
        assert sorted(one) == list(range(7))
    assert not np.array_equal(passes[0], passes[1])


@given(st.integers(1, 200), st.integers(1, 64))
def test_windows_that_judge_are_a_batch_spread_evenly(windows: int, size: int) -> None:
    counts = np.bincount(distil.judges(windows, size), minlength=windows)
    assert counts.sum() == size and len(counts) == windows
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("rank", [0, 16])
@pytest.mark.parametrize("config", [llama(**SMALL), openelm(**ONE)], ids=["llama", "openelm"])
def test_training_helps_and_keeps_to_the_format(tmp_path: Path, config: dict[str, Any], rank: int) -> None:
    source = write_checkpoint(
        tmp_path / "src", config, {k: v.astype(np.float16) for k, v in weights(config).items()}
    )
    palettize(source, tmp_path / "plain", bits=2, calibration=TEXT, recover=rank, **QUIET)
    report = palettize(source, tmp_path / "dst", bits=2, recover=rank, **OPTIONS)
    assert report.recovery is not None
    assert report.recovery.losses is not None
    assert report.recovery.losses[1] < 0.9 * report.recovery.losses[0]
    before, after = open_model(tmp_path / "plain"), open_model(tmp_path / "dst")
    assert before.store.names() == after.store.names()
    assert (after.adapter is not None) == (rank > 0)
    changed = set()
    for name in after.store.names():
        one, two = before.store.info(name), after.store.info(name)
        assert (one.kind, one.shape, one.bytes) == (two.kind, two.shape, two.bytes)
        if not np.array_equal(before.store.dense(name), after.store.dense(name)):
            changed.add(name)
    embeddings = {op.weight.name for op in after.graph.ops if op.kind == "embed" or op.name == "head"}
    assert changed == set(after.store.names()) - embeddings
    original = open_model(source)

    def loss(model: Any) -> float:
        return float(distil.divergence(*on_unseen_text((original, model), interpreter.logits)))

    assert loss(after) < 0.9 * loss(before)
    with pocketlm.load(tmp_path / "dst") as lm:
        assert np.isfinite(lm.logits([1, 2, 3])).all()


def test_interrupted_training_ends_in_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_checkpoint(tmp_path / "src", llama(**SMALL))
    options = {**OPTIONS, "bits": 3, "recover": 16, "recover_train": 20_000}
    whole = palettize(source, tmp_path / "whole", **options)
    monkeypatch.setattr(distil, "SAVE_SECONDS", 0.0)
    real = distil._save

    def limited(path: Path, values: Any, done: int) -> None:
        real(path, values, done)
        if done in (1, 5):
            raise KeyboardInterrupt

    for _ in range(2):
        stopped(source, tmp_path / "dst", monkeypatch, distil, "_save", limited, **options)
        assert names(tmp_path)[0].startswith("dst.partial-")

    def writing(*_: Any) -> None:  # while the results are being written
        raise KeyboardInterrupt

    stopped(source, tmp_path / "dst", monkeypatch, recover_train, "_stored", writing, **options)
    check_resumed(source, tmp_path / "dst", whole, tmp_path / "whole", **options)


def test_a_loss_that_is_not_finite_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_checkpoint(tmp_path / "src", llama(**SMALL))
    monkeypatch.setattr(distil, "divergence", lambda a, b: (a - b).sum() * jnp.nan)
    with pytest.raises(AdapterError, match="loss is nan at step 1"):
        palettize(source, tmp_path / "dst", bits=3, **OPTIONS)
    assert names(tmp_path) == ["src"]  # nothing to come back to


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "one byte", "other shapes", "other steps"])
def test_damaged_state_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    source = write_checkpoint(tmp_path / "src", llama(**SMALL))
    options = {**OPTIONS, "bits": 3, "recover_train": 6_000}
    palettize(source, tmp_path / "whole", **options)
    monkeypatch.setattr(distil, "SAVE_SECONDS", 0.0)
    real = distil._save

    def stop(path: Path, values: Any, done: int) -> None:
        real(path, values, done)
        raise KeyboardInterrupt

    stopped(source, tmp_path / "dst", monkeypatch, distil, "_save", stop, **options)
    (file,) = tmp_path.glob("dst.partial-*/training.npz")
    whole = file.read_bytes()
    half = len(whole) // 2
    with np.load(file) as saved:
        arrays = {name: saved[name] for name in saved.files}
    if damage == "other shapes":
        np.savez(file, **{**arrays, "0": arrays["0"][..., :1]})
    elif damage == "other steps":
        np.savez(file, **{**arrays, "done": np.asarray(99)})
    else:
        bad = {"empty": b"", "cut": whole[:half], "noise": b"?" * 99}
        one = whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :]
        file.write_bytes(bad.get(damage, one))
    palettize(source, tmp_path / "dst", **options)
    assert tree(tmp_path / "dst") == tree(tmp_path / "whole")


def test_a_single_step_learns(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "src", llama(**SMALL))
    palettize(source, tmp_path / "plain", bits=2, **QUIET)
    options = {**OPTIONS, "calibration": None, "bits": 2, "recover_train": 1}
    report = palettize(source, tmp_path / "dst", **options)
    assert report.recovery is not None and report.recovery.training is not None
    before, behind = report.recovery.training.judged or (0.0, 0.0)
    assert report.recovery.training.worse == 0 and behind < before
    weights_of = [tree(tmp_path / name)["model.safetensors"] for name in ("plain", "dst")]
    assert weights_of[0] != weights_of[1]


def test_training_that_makes_it_worse_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from pocketlm.cli import run

    source = write_checkpoint(tmp_path / "src", llama(**SMALL))
    wild = distil.Settings(rates=tuple((group, 3.0) for group, _ in distil.Settings().rates))
    monkeypatch.setattr(recover_train, "Settings", lambda: wild)
    palettize(source, tmp_path / "plain", bits=3, **QUIET)
    (tmp_path / "text").write_text(TEXT[0])
    arguments = ["--bits", "3", "--recover-train", "4k", "--recover-text", str(tmp_path / "text")]
    assert run(["palettize", str(source), str(tmp_path / "dst"), *arguments]) == 0
    assert re.search(r"training  +left out: from \d.* nats .* made it worse", capsys.readouterr().out)
    one, two = (tree(tmp_path / name)["model.safetensors"] for name in ("dst", "plain"))
    assert one == two
    assert run(["palettize", str(source), str(tmp_path / "two"), *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["training_left_out"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recover_train": -1}, "recover_train"),
        ({"recover_train": 1.5}, "recover_train"),
        ({"recover_train": True}, "recover_train"),
        ({"recover_text": None}, "recover_text"),
        ({"recover_train": 0}, "recover_text"),
        ({"recover_text": [""]}, "no text"),
        ({"recover_text": ["w1 w2"]}, "tokens"),
        ({"recover_text": [7]}, "recover_text"),
    ],
)
def test_arguments_that_make_no_sense(source: Path, tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        palettize(source, tmp_path / "dst", **{**OPTIONS, **change})
    assert names(tmp_path) == ["src"]


def test_without_the_extra_it_says_what_to_install(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "optax":
            raise ImportError("No module named 'optax'", name="optax")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UnsupportedError, match=r"optax.*pocketlm\[train\]"):
        palettize(source, tmp_path / "dst", **OPTIONS)


def test_it_learns_from_windows_of_the_text_it_was_given(tmp_path: Path) -> None:
    model = open_model(write_checkpoint(tmp_path / "m", llama()))
    words = [f"w{i % 97}" for i in range(20_000)]
    windows = recovery.training_windows(model, [" ".join(words)], Recovery(train=1100))
    assert windows is not None
    assert windows.shape == (4, recovery.TRAINING_WINDOW)
    assert ((np.diff(windows.astype(int)) % 97) == 1).all()
    with pytest.raises(ParameterError, match=r"recover_text: .* 3 tokens"):
        recovery.training_windows(model, ["w1 w2 w3"], Recovery(train=1100))
    with pytest.raises(MissingFileError, match="nowhere"):
        recovery.training_windows(model, tmp_path / "nowhere", Recovery(train=1100))


def test_bfloat16_is_rounded_to_nearest() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, -3.1415927, 65504.0], np.float32)
    stored = np.frombuffer(recover_train._stored("w", values, "bf16"), np.uint16)
    expected = np.asarray(jnp.asarray(values).astype(jnp.bfloat16)).view(np.uint16)
    np.testing.assert_array_equal(stored, expected)


def test_the_command_tells_of_both(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from pocketlm.cli.palettize import command

    source = write_checkpoint(tmp_path / "src", llama(**SMALL))
    (tmp_path / "text.txt").write_text(TEXT[0])
    text = str(tmp_path / "text.txt")
    arguments = ["--bits", "3", "--calibration", text, "--recover", "16", "--recover-train", "4k"]
    arguments += ["--recover-text", text]
    run = CliRunner().invoke(command, [str(source), str(tmp_path / "dst"), *arguments])
    assert run.exit_code == 0, run.output
    assert "recovery adapter" in run.output
    assert "divergence in training" in run.output
    assert "divergence before recovery" in run.output and "perplexity --against" in run.output
    ranks = run.output.split("not in projections; ")[1].splitlines()[0]
    assert re.fullmatch(r"(rank \d+|ranks from \d+ to \d+) on \d+ of 7 projections", ranks)
    run = CliRunner().invoke(command, [str(source), str(tmp_path / "two"), *arguments, "--json"])
    assert run.exit_code == 0, (run.output, run.exception)
    found = json.loads(run.output)
    assert found["adapter_bytes"] > 0
    assert len(found["training_losses"]) == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, 20.0])  # e^20 is beyond half precision
def test_nothing_that_is_not_finite_is_stored(bad: float) -> None:
    parts = np.ones(16, np.float16), np.arange(16, dtype=np.int8)[None]
    fine = {"scale:w": np.zeros(16, np.float32), "codebook:w": np.full((1, 16), 3.4, np.float32)}
    scale, book = student.learned(parts, "p4", fine, "w")
    assert (scale == 1).all() and book is not None and (book == 3).all()
    for key in fine:
        values = fine[key].copy()
        values.flat[5] = bad
        if key == "codebook:w" and np.isfinite(bad):
            continue
        with pytest.raises(AdapterError, match="w: training led to"):
            student.learned(parts, "p4", {**fine, key: values}, "w")


@pytest.mark.parametrize(
    ("kind", "bad"),
    [("f16", 1e6), ("f16", np.nan), ("bf16", 3.4e38), ("bf16", np.nan), ("f32", np.inf), ("f32", np.nan)],
)
def test_no_norm_that_is_not_finite_is_stored(kind: str, bad: float) -> None:
    values = np.array([1.0, bad, -2.0], np.float32)
    with pytest.raises(AdapterError, match=r"^layers\.0\.norm: training led to numbers that are not finite"):
        recover_train._stored("layers.0.norm", values, kind)
    assert len(recover_train._stored("layers.0.norm", values[::2].copy(), kind)) in (4, 8)
