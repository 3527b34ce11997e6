"""Calibrations weighted by gradients: right, resumable to the same bytes, told from plain ones."""

from __future__ import annotations

import builtins
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoints import weights, write_checkpoint
from independent.cases import llama, openelm
from palettizing import QUIET, content, interrupted, names
from pocketlm.errors import FileFormatError, ParameterError, StorageError, UnsupportedError, WeightError
from pocketlm.graph import Linear
from pocketlm.interpret import jax as interpreter
from pocketlm.interpret.reference import Reference
from pocketlm.loading import open_model
from pocketlm.palettize import calibrate as module
from pocketlm.palettize import guided, palettize, unfinished
from pocketlm.palettize.calibrate import calibrate
from pocketlm.palettize.calibration import MANIFEST, Calibration
from pocketlm.palettize.fisher import drawn
from pocketlm.palettize.hidden import Hidden

ONE = {"num_hidden_layers": 1}
CONFIGS = {
    "llama": llama(attention_bias=True),
    "tied": llama(tie_word_embeddings=True, **ONE),
    "openelm": openelm(
        num_transformer_layers=1, num_query_heads=[4], num_kv_heads=[2], qkv_multipliers=[0.5],
        ffn_multipliers=[1.4],
    ),
}  # fmt: skip
TEXT = " ".join(f"w{i * 7 % 97}" for i in range(1500))
GROUPS = 3


def some_windows(count: int = 5, length: int = 12) -> Any:
    return np.random.default_rng(1).integers(0, 97, (count, length)).astype(np.uint32)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_moments_are_those_of_the_whole_models_gradients(
    tmp_path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guided, "_TOKENS", 24)  # several batches, the last one smaller
    model = open_model(write_checkpoint(tmp_path / "src", config))
    windows = some_windows()
    found = calibrate(model, windows, tmp_path / "cal", groups=GROUPS, progress=False, threads=2)
    plain = calibrate(model, windows, tmp_path / "plain", progress=False)
    graph = model.graph
    params = {name: jnp.asarray(model.store.dense(name)) for name in graph.weights()}
    ids = jnp.asarray(windows.astype(np.int32))
    uniform = np.random.default_rng(guided.SEED).random(windows.size, np.float32).reshape(windows.shape)

    def run(added: Any) -> Any:
        values: list[Any] = []
        cache: dict[int, Any] = {}
        for index, op in enumerate(graph.ops):
            value = interpreter.apply(op, params, ids, cache, *(values[i] for i in op.inputs()))
            values.append(value + added.get(index, 0.0))
        return values[-1], values

    linears = {i: op for i, op in enumerate(graph.ops) if isinstance(op, Linear)}
    zeros = {i: jnp.zeros((*windows.shape, op.width)) for i, op in linears.items()}

    @jax.jit
    def gradients(uniform: Any) -> Any:
        logits, back, values = jax.vjp(run, zeros, has_aux=True)
        return *back(drawn(logits, uniform)), values

    slopes, values = gradients(jnp.asarray(uniform))
    looked_up = {graph.ops[0].weight.name}  # type: ignore[union-attr]
    for index, op in linears.items():
        x = np.asarray(values[op.x], np.float64).reshape(windows.size, -1)
        squares = np.square(np.asarray(slopes[index], np.float64)).reshape(windows.size, -1)
        np.testing.assert_array_equal(
            found.second_moment(op.weight.name), plain.second_moment(op.weight.name)
        )
        stop = 0
        for group in found.groups(op.weight.name):
            assert (group.start, group.start % 16) == (stop, 0)
            stop = group.stop
            own = squares[:, group.start : stop]
            s = own.mean(1)
            expected = (x.T * s) @ x / windows.size
            scale = np.abs(x.T * s) @ np.abs(x) / windows.size
            assert (np.abs(group.moment - expected) <= 1e-3 * scale.max()).all(), op.name
            rows = np.ones(own.shape[1])
            if op.weight.name not in looked_up:
                rows = np.maximum(own.mean(0) / own.mean(), 1e-3)
            np.testing.assert_allclose(group.row_weights, rows, rtol=2e-3)
        assert stop == op.width
    diagonal = sum(
        (g.stop - g.start) / op.width * np.diagonal(g.moment) for g in found.groups(op.weight.name)
    )
    np.testing.assert_allclose(found.importance(op.weight.name), diagonal, rtol=1e-5)


def test_they_say_what_errors_of_weights_cost_in_divergence(tmp_path: Path) -> None:
    config = llama(num_hidden_layers=1, hidden_size=48, intermediate_size=40, vocab_size=61)
    model = open_model(write_checkpoint(tmp_path / "src", config))
    rng = np.random.default_rng(0)
    windows = rng.integers(0, 61, (40, 16)).astype(np.uint32)
    found = calibrate(model, windows, tmp_path / "cal", groups=2, progress=False)
    exact = {name: model.store.dense(name).astype(np.float64) for name in model.graph.weights()}

    def likely(arrays: Any) -> Any:
        run = Reference(model.graph, arrays)
        logits = np.stack([run.logits(window) for window in windows[:20]])
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    before = likely(exact)
    sites = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj")
    for name in [f"model.layers.0.{site}.weight" for site in sites] + ["lm_head.weight"]:
        scale, measured = 1e-3, []
        for _ in range(6):
            error = scale * rng.standard_normal(exact[name].shape)
            after = likely(exact | {name: exact[name] + error})
            measured.append((np.exp(before) * (before - after)).sum(-1).mean())
        # Of independent errors of variance σ² half the sum of σ² times the Fisher information of all weights.
        predicted = 0.5 * sum(
            scale**2 * group.row_weights.sum() * np.trace(group.moment.astype(np.float64))
            for group in found.groups(name)
        )
        assert np.mean(measured) == pytest.approx(predicted, rel=0.25), name


def test_drawn_gradients_have_the_covariance_of_the_softmax() -> None:
    logits = jnp.asarray([2.0, 0.0, -1.0, 1.0, -30.0])
    uniform = jnp.linspace(0, 1, 200_001)[:-1]
    slopes = np.asarray(drawn(jnp.tile(logits, (200_000, 1)), uniform), np.float64)
    p = np.exp(np.asarray(logits, np.float64))
    p /= p.sum()
    np.testing.assert_allclose(slopes.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(slopes.T @ slopes / len(slopes), np.diag(p) - np.outer(p, p), atol=1e-4)
    top = drawn(jnp.zeros((1, 7)), jnp.asarray([np.nextafter(np.float32(1), np.float32(0))]))
    assert int(jnp.argmin(top)) == 6


@given(st.integers(1, 500), st.integers(1, 9))
def test_groups_of_rows_begin_at_tiles_and_are_even(rows: int, count: int) -> None:
    groups = guided.row_groups(rows, count)
    assert [start for start, _ in groups] == [0, *(stop for _, stop in groups[:-1])]
    assert groups[-1][1] == rows
    assert all(start % 16 == 0 and stop > start for start, stop in groups)
    tiles = [-(-(stop - start) // 16) for start, stop in groups]
    assert len(groups) == min(count, -(-rows // 16))
    assert max(tiles) - min(tiles) <= 1


def test_threads_and_interruptions_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(write_checkpoint(tmp_path / "src", llama(**ONE)))
    windows = some_windows()
    options: dict[str, Any] = {"groups": GROUPS, "progress": False}
    calibrate(model, windows, tmp_path / "whole", threads=1, **options)
    # Each goes on where the one before was stopped: in and behind the parts of the forward pass (attention,
    # feed-forward, head), of the backward pass (head, layer), and in the end.
    for owner, name, number in (
        (Hidden, "append", 2),
        (module, "replace", 1),
        (module, "replace", 2),
        (Hidden, "append", 3),
        (guided, "_save", 3),
        (Hidden, "append", 1),
        (module, "replace", 1),
        (Hidden, "remove_at", 1),
        (guided, "_save", 9),
        (module, "replace", 1),
        (Hidden, "remove_at", 1),
        (module, "replace", 1),
        (Hidden, "remove_all", 1),
    ):
        count, real = itertools.count(1), getattr(owner, name)

        def limited(*args: Any, real: Any = real, count: Any = count, number: int = number) -> None:
            if next(count) == number:
                raise KeyboardInterrupt
            real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, limited)
            with pytest.raises(KeyboardInterrupt):
                calibrate(model, windows, tmp_path / "cal", threads=3, **options)
        assert not (tmp_path / "cal").exists()
    calibrate(model, windows, tmp_path / "cal", **options)
    assert content(tmp_path / "cal") == content(tmp_path / "whole")
    assert names(tmp_path) == ["cal", "src", "whole"]
    for groups in (0, GROUPS + 1):
        with pytest.raises(ParameterError, match="another"):
            calibrate(model, windows, tmp_path / "cal", groups=groups, progress=False)


def test_lost_states_are_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(write_checkpoint(tmp_path / "src", llama(**ONE)))
    options: dict[str, Any] = {"groups": 1, "progress": False}
    calibrate(model, some_windows(), tmp_path / "whole", **options)
    for lost, done in (("hidden-0002", 0), ("gradient-0002", 1)):
        with monkeypatch.context() as patch:
            count, real = itertools.count(), guided.run_back

            def limited(*args: Any, real: Any = real, count: Any = count, done: int = done) -> None:
                if next(count) == done:
                    raise KeyboardInterrupt
                real(*args)

            patch.setattr(guided, "run_back", limited)
            with pytest.raises(KeyboardInterrupt):
                calibrate(model, some_windows(), tmp_path / "cal", **options)
        (partial,) = tmp_path.glob("cal.partial-*")
        (partial / f"{lost}.safetensors").unlink()
        calibrate(model, some_windows(), tmp_path / "cal", **options)
        assert content(tmp_path / "cal") == content(tmp_path / "whole")
        shutil.rmtree(tmp_path / "cal")


def test_gradients_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    arrays = weights(llama())
    arrays["model.layers.1.mlp.up_proj.weight"] *= 1e-25
    arrays["model.layers.1.mlp.down_proj.weight"] *= 1e25  # what comes out is as before
    model = open_model(write_checkpoint(tmp_path / "src", arrays=arrays))
    calibrate(model, some_windows(), tmp_path / "plain", progress=False)
    with pytest.raises(WeightError, match=r"gradient at layers\.1\.ffn\.up.*not finite"):
        calibrate(model, some_windows(), tmp_path / "cal", groups=1, progress=False)
    assert not (tmp_path / "cal").exists()


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(write_checkpoint(tmp_path / "src"))
    windows = some_windows()
    asked = []
    for groups in (0, 1, 2):
        with monkeypatch.context() as patch:
            patch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
            with pytest.raises(StorageError, match=r"needs (\d+) bytes") as raised:
                calibrate(model, windows, tmp_path / "cal", groups=groups, progress=False)
        asked.append(int(str(raised.value).partition("needs ")[2].split()[0]))
    assert asked[0] < asked[1] < asked[2]
    # What is asked for is there to be used up: the most that lies there is no more, and not far below.
    seen, real = [0], Hidden.remove_at

    def look(partial: Path, *args: Any) -> None:
        seen.append(sum(path.stat().st_size for path in partial.iterdir()))
        real(partial, *args)

    monkeypatch.setattr(Hidden, "remove_at", look)
    calibrate(model, windows, tmp_path / "cal", groups=2, progress=False)
    assert 0.5 * asked[2] < max(seen) + unfinished.SPARE_BYTES <= asked[2]


def test_palettize_guided_and_from_what_it_stored(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"bits": 3, "kinds": "3", "validation": ["w1 w2 w3 " * 90], **QUIET}
    stored, plain = tmp_path / "cal", tmp_path / "plain-cal"
    palettize(source, tmp_path / "a", calibration=[TEXT], guided=True, calibration_out=stored, **options)
    palettize(source, tmp_path / "b", calibration=[TEXT], calibration_out=plain, **options)
    assert Calibration.open(stored).guided == guided.GROUPS
    assert Calibration.open(plain).guided == 0
    palettize(source, tmp_path / "c", calibration=stored, **options)  # a stored one is used as it is
    palettize(source, tmp_path / "d", calibration=stored, guided=True, recover=16, **options)
    given = {key: value for key, value in options.items() if key != "progress"}
    interrupted(source, tmp_path / "e", monkeypatch, 4, calibration=[TEXT], guided=True, **given)
    palettize(source, tmp_path / "e", calibration=[TEXT], guided=True, **options)
    found = {name: content(tmp_path / name)["model.safetensors"] for name in "abce"}
    assert found["a"] == found["c"] == found["e"] != found["b"]
    palettize(source, tmp_path / "f", calibration=stored, compensation=False, **options)
    palettize(source, tmp_path / "g", calibration=plain, compensation=False, **options)
    assert len({content(tmp_path / name)["model.safetensors"] for name in "abfg"}) == 4
    for change, message in (
        ({"guided": True}, "no calibration"),
        ({"guided": True, "calibration": plain}, "guided: .*calibrate anew"),
        ({"guided": 1, "calibration": [TEXT]}, "guided: must be"),
        ({"guided": True, "calibration": [TEXT], "calibration_out": plain}, "another"),
    ):
        with pytest.raises(ParameterError, match=message):
            palettize(source, tmp_path / "x", **change, **QUIET)


def test_without_the_extra_it_says_what_to_install(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    palettize(
        source, tmp_path / "a", calibration=[TEXT], guided=True, calibration_out=tmp_path / "cal", **QUIET
    )
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "jax":
            raise ImportError("No module named 'jax'", name="jax")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UnsupportedError, match=r"guided: needs jax.*pocketlm\[train\]"):
        palettize(source, tmp_path / "dst", calibration=[TEXT], guided=True, **QUIET)
    palettize(source, tmp_path / "dst", calibration=tmp_path / "cal", guided=True, **QUIET)  # made already


def test_damaged_groups_are_refused(source: Path, tmp_path: Path) -> None:
    stored = tmp_path / "cal"
    calibrate(open_model(source), some_windows(), stored, groups=2, progress=False)
    name = "model.layers.1.mlp.up_proj.weight"
    facts = json.loads((stored / MANIFEST).read_text())
    group = facts["tensors"][name]["groups"][1]
    (moment,), (rows,) = group["moments"], facts["tensors"][name]["row_weights"]
    for change in (
        lambda entry: entry.pop("groups"),
        lambda entry: entry.pop("row_weights"),
        lambda entry: entry["groups"].pop(),
        lambda entry: entry["groups"].reverse(),
        lambda entry: entry["groups"].clear(),
        lambda entry: entry["groups"][0].update(rows=[0, 47]),
        lambda entry: entry["groups"][1].update(rows=["a", "b"]),
        lambda entry: entry["groups"][1].update(moments=[]),
        lambda entry: entry["groups"][1].update(moments=["../x.npy"]),
        lambda entry: entry.update(row_weights=[7]),
        lambda entry: entry.update(groups=3),
        lambda entry: entry.update(groups=[3]),
    ):
        bad = json.loads(json.dumps(facts))
        change(bad["tensors"][name])
        (stored / MANIFEST).write_text(json.dumps(bad))
        with pytest.raises(FileFormatError, match=MANIFEST):
            Calibration.open(stored)
    (stored / MANIFEST).write_text(json.dumps(facts))
    for file in (rows, moment):
        kept = (stored / file).read_bytes()
        (stored / file).write_bytes(kept[:-4])
        with pytest.raises(FileFormatError, match=file):
            list(Calibration.open(stored).groups(name))
        (stored / file).write_bytes(kept)


def test_the_command_has_it(source: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from pocketlm.cli.palettize import command

    (tmp_path / "text.txt").write_text(TEXT)
    arguments = ["--calibration", str(tmp_path / "text.txt"), "--guided"]
    arguments += ["--calibration-out", str(tmp_path / "cal"), "--bits", "3"]
    run = CliRunner().invoke(command, [str(source), str(tmp_path / "dst"), *arguments])
    assert run.exit_code == 0, run.output
    assert Calibration.open(tmp_path / "cal").guided
    run = CliRunner().invoke(command, [str(source), "--dry-run", *arguments])
    assert run.exit_code == 0, run.output
