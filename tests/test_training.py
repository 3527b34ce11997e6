"""Training of a model of a few thousand weights: it learns, resumes bit for bit, averages, exports."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="training needs the extra 'train'")
pytest.importorskip("safetensors", reason="training needs training/requirements.txt")
import jax.numpy as jnp  # noqa: E402
from training import evaluate, model, muon, study, train  # noqa: E402
from training.average import average  # noqa: E402
from training.data import Position, Stream, read_tokens  # noqa: E402
from training.export import export  # noqa: E402
from training.state import load_model, load_state, load_weights, save_state, save_weights  # noqa: E402
from training.workers import launch  # noqa: E402

from pocketlm.errors import FileFormatError, MissingFileError, ParameterError, WeightError  # noqa: E402
from pocketlm.families import build_graph  # noqa: E402

VOCAB = 64


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text with structure: each token is followed by one of two."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    tokens = np.zeros(6000, np.uint16)
    for i in range(1, len(tokens)):
        tokens[i] = (tokens[i - 1] * 5 + 1 + rng.integers(2)) % VOCAB
    tokens[:5000].tofile(folder / "train.bin")
    tokens[5000:].tofile(folder / "valid.bin")
    (folder / "manifest.json").write_text(json.dumps({"tokenizer": {"vocab_size": VOCAB}}))
    return folder


def options(data: Path, out: Path, *extra: str) -> argparse.Namespace:
    fixed = [
        "--shape",
        "tiny",
        "--context",
        "16",
        "--workers",
        "1",
        "--warmup",
        "5",
        "--eval-every",
        "20",
        "--quiet",
    ]
    return train.parse(["--data", str(data), "--out", str(out), *fixed, *extra])


def same(a: object, b: object) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run of 40 steps."""
    out = tmp_path_factory.mktemp("run")
    train.train(options(data, out, "--steps", "40", "--snapshot-every", "20"))
    return out


def test_loss_falls(run: Path) -> None:
    lines = evaluate.read_log(run / train.LOG)
    assert lines[0]["loss"] > lines[-1]["loss"] + 0.5
    assert lines[-1]["valid"] < 3


def test_resumed_equals_unbroken(data: Path, run: Path, tmp_path: Path) -> None:
    train.train(options(data, tmp_path, "--steps", "17"))
    train.train(options(data, tmp_path, "--steps", "40", "--resume", str(tmp_path / train.STATE)))
    whole, broken = load_state(run / train.STATE), load_state(tmp_path / train.STATE)
    assert same(whole.params, broken.params)
    assert same(whole.moments, broken.moments)
    assert dataclasses.replace(broken.progress, seconds=whole.progress.seconds) == whole.progress


def test_two_workers_see_what_one_sees(data: Path, tmp_path: Path) -> None:
    for workers, batch in ((1, 8), (2, 4)):
        arguments = options(
            data, tmp_path / str(workers), "--steps", "3", "--workers", str(workers), "--batch", str(batch)
        )
        launch(train.train, arguments, train.parameter_count(arguments))
    one, two = (load_state(tmp_path / name / train.STATE) for name in "12")
    assert one.progress.position == two.progress.position
    for name, value in one.moments["momentum"].items():
        np.testing.assert_allclose(two.moments["momentum"][name], value, rtol=0.02, atol=1e-4, err_msg=name)


def test_decay_ends_at_zero_and_leaves_the_source_alone(data: Path, run: Path, tmp_path: Path) -> None:
    before = (run / train.STATE).read_bytes()
    arguments = options(data, tmp_path, "--resume", str(run / train.STATE), "--decay-steps", "10")
    state = train.train(arguments)
    assert state.progress.step == 50
    assert train.rate_factor(state.progress, 5) == 0
    assert [train.rate_factor(dataclasses.replace(state.progress, step=s), 5) for s in (40, 45)] == [1, 0.5]
    assert (run / train.STATE).read_bytes() == before


def test_compact_state_warms_up_again(run: Path, tmp_path: Path) -> None:
    state = load_state(run / train.STATE)
    save_state(tmp_path / "compact", state, compact=True)
    compact = load_state(tmp_path / "compact")
    assert train.rate_factor(compact.progress, 5) == 0.2
    assert not any(value.any() for value in compact.moments["momentum"].values())
    for name, value in state.params.items():
        np.testing.assert_allclose(compact.params[name], value, rtol=2**-11, atol=1e-7)
    for name, value in state.moments["square"].items():
        np.testing.assert_allclose(compact.moments["square"][name], value, rtol=2**-8)


def test_an_interrupted_study_stops(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal makes ``train`` save and return early; the study must not go on with half-trained weights."""

    def interrupted(main: object, arguments: argparse.Namespace, count: int) -> object:
        del main, count
        arguments.steps = 3
        arguments.quiet = True
        return train.train(arguments)

    monkeypatch.setattr(study, "launch", interrupted)
    values = {
        "data": data, "out": tmp_path, "teraflops": 0.001, "workers": 1, "batch": 2, "context": 16,
        "matrix_rate": 0.02, "adam_rate": 4e-3,
    }  # fmt: skip
    with pytest.raises(SystemExit, match="tiny was interrupted at step 3 of "):
        study.run(argparse.Namespace(**values), "tiny")


def test_average(run: Path, tmp_path: Path) -> None:
    paths = [run / "weights-000020.safetensors", run / "weights-000040.safetensors"]
    mean, (a, b) = average(paths), (load_weights(path) for path in paths)
    for name, value in mean.items():
        np.testing.assert_allclose(
            value, (np.float64(a[name]) + np.float64(b[name])) / 2, rtol=1e-6, atol=1e-7
        )
    save_weights(tmp_path / "other", {"x": jnp.ones(3)})
    with pytest.raises(WeightError, match="other"):
        average([paths[0], tmp_path / "other"])
    with pytest.raises(ParameterError):
        average([])


def test_exported_model_is_the_trained_one(data: Path, run: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
    state = load_state(run / train.STATE)
    export(tmp_path / "model", state.progress.config, state.params, tmp_path, "float16")
    graph, params = load_model(tmp_path / "model")
    tokens = read_tokens(data / "valid.bin", VOCAB)
    exact = evaluate.quick_loss(graph, state.params, tokens, 16)
    assert abs(evaluate.quick_loss(graph, params, tokens, 16) - exact) < 1e-2


def test_every_token_is_counted_once(data: Path) -> None:
    graph = build_graph(model.make_config("tiny", VOCAB))
    params = model.init_params(graph, 0)
    tokens = read_tokens(data / "valid.bin", VOCAB)[:100]
    uniform = {name: jnp.zeros_like(value) for name, value in params.items()}
    for context, stride in ((16, 8), (30, 7), (200, 100)):
        total, by_position = evaluate.total_loss(graph, uniform, tokens, context, stride)
        assert total == pytest.approx(99 * np.log(VOCAB), rel=1e-6)
        assert len(by_position) == min(context, 99)


def test_cross_entropy_gradient() -> None:
    rng = np.random.default_rng(1)
    h, table = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((24, 8), (VOCAB, 8)))
    targets = jnp.asarray(rng.integers(VOCAB, size=24))

    def plain(h: jax.Array, table: jax.Array) -> jax.Array:
        return -jnp.take_along_axis(jax.nn.log_softmax(h @ table.T), targets[:, None], 1).mean()

    expected = jax.value_and_grad(plain, (0, 1))(h, table)
    actual = jax.value_and_grad(lambda h, t: model.cross_entropy(h, t, targets), (0, 1))(h, table)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_orthogonalised_parts() -> None:
    graph = build_graph(model.make_config("tiny", VOCAB))
    parts = muon.matrix_parts(graph)
    assert len(parts) == 2 * 7  # query, key, value, output, gate, up, down
    rng = np.random.default_rng(2)
    shapes = {name: weight.shape for name, weight in graph.weights().items()}
    momentum = {p.name: jnp.asarray(rng.standard_normal(shapes[p.name]), jnp.float32) for p in parts}
    for part, value in muon.directions(parts, momentum).items():
        assert value.shape == (part.stop - part.start, shapes[part.name][1])
        singular = np.linalg.svd(value / max(1, value.shape[0] / value.shape[1]) ** 0.5, compute_uv=False)
        assert 0.4 < singular.min() <= singular.max() < 1.4


def test_an_epoch_sees_each_window_once() -> None:
    stream = Stream(np.arange(1000, dtype=np.uint16), 3, 10, seed=4)
    position, seen = Position(), []
    while position.epoch == 0:
        windows, position = stream.take(position)
        seen += [int(w[0]) for w in windows if position.epoch == 0]
    assert len(set(seen)) == len(seen) >= stream.count - 2
    assert {b - a for a, b in zip(sorted(seen), sorted(seen)[1:], strict=False)} <= {10, 20, 30}
    assert stream.take(Position(2, 6, 20))[1] == Position(3, 3, 10)  # another context length: next epoch


def test_damaged_files_are_named(data: Path, run: Path, tmp_path: Path) -> None:
    bad = tmp_path / "state.safetensors"
    with pytest.raises(MissingFileError, match="no such checkpoint"):
        load_state(bad)
    bad.write_bytes((run / train.STATE).read_bytes()[:-9])
    with pytest.raises(FileFormatError, match=r"state\.safetensors"):
        load_state(bad)
    with pytest.raises(FileFormatError, match="not a training checkpoint"):
        load_state(run / "weights-000020.safetensors")
    with pytest.raises(FileFormatError, match="vocabulary has 10"):
        read_tokens(data / "train.bin", 10)
    with pytest.raises(ParameterError, match="needs more"):
        Stream(np.zeros(30, np.uint16), 4, 16, 0)
    with pytest.raises(ParameterError, match="--context 4096"):
        train.train(options(data, tmp_path, "--context", "4096"))
