"""Training block by block: from the right states, resumed to the same bytes, and alone where memory ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from checkpoints import read_safetensors, write_checkpoint
from independent.cases import llama
from palettizing import QUIET, names, stopped, tree
from pocketlm import memory
from pocketlm.errors import AdapterError
from pocketlm.interpret import jax as interpreter
from pocketlm.loading import open_model
from pocketlm.palettize import blockwise, palettize, recover_train, room
from pocketlm.palettize.blockwise import Task, train_blocks
from pocketlm.palettize.distil import Settings
from pocketlm.palettize.hidden import Hidden
from recovering import TEXT, check_resumed, on_unseen_text, params_of

CONFIG = llama(num_hidden_layers=2, max_position_embeddings=64)
pytestmark = pytest.mark.usefixtures("few")
OPTIONS: dict[str, Any] = {
    "bits": 3, "calibration": TEXT, "recover": 16, "recover_text": TEXT, "recover_train": 12_000, **QUIET,
}  # fmt: skip


def task_of(source: Path, made: Path) -> Task:
    model, palettized = open_model(source), open_model(made)
    parts = {}
    for op in model.graph.linears():
        if op.name != "head":
            parts[op.weight.name] = stored(made, op.weight.name)
    return Task(model, model.graph, palettized.store, parts, {})


def stored(made: Path, name: str) -> Any:
    header, content, base = read_safetensors(made / "model.safetensors")

    def array(key: str, dtype: Any) -> Any:
        start, stop = header[key]["data_offsets"]
        return np.frombuffer(content[base + start : base + stop], dtype).reshape(header[key]["shape"])

    return array(f"{name}.scale", np.float16), array(f"{name}.codebook", np.int8)


def test_blocks_learn_from_the_states_of_both_models(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "src", CONFIG)
    palettize(source, tmp_path / "m", bits=2, calibration=TEXT, **QUIET)
    task = task_of(source, tmp_path / "m")
    windows = np.random.default_rng(0).integers(0, 97, (7, 16)).astype(np.uint32)
    settings = Settings(tokens=32)  # two windows, so that one is left over
    seen: list[tuple[int, float]] = []
    found = train_blocks(task, windows, 40, settings, tmp_path, lambda n, loss: seen.append((n, loss)))
    trained = found.learned
    blocks = task.blocks()
    layers = CONFIG["num_hidden_layers"]
    assert len(blocks) == found.count == layers and found.worse == 0
    assert [number for number, _ in seen] == list(range(1, 40 * layers + 1))
    for block in range(layers):
        losses = [loss for _, loss in seen[40 * block : 40 * block + 40]]
        assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    last = blocks[-1][0].stop
    ids = jnp.asarray(windows.astype(np.int32))
    original = params_of(task.model)
    whole = blockwise.Student(task.graph, task.store, task.parts, {})
    assert set(trained) == set(whole.trainable) - {op.weight.name for op in task.graph.ops[last:-1]}  # type: ignore
    learned = whole.params(whole.trainable | trained, whole.fixed)
    for what, params, read in (
        ("source", original, None),
        ("student", learned, blockwise.reader(task.graph)),
    ):
        state = Hidden.at(tmp_path, layers, windows.size, task.graph.ops[last - 1].width, what)
        expected = np.asarray(interpreter.run(task.graph.ops[:last], params, ids, read))
        found = state.rows(0, windows.size).reshape(expected.shape)
        # Rounding to int8 may fall the other way where sums are in another order.
        bound = 1e-4 if what == "source" else 0.05
        assert np.abs(found - expected).max() <= bound * np.abs(expected).max()


def test_the_error_is_relative_token_by_token() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.standard_normal((2, 3, 8)) * np.array([1, 1e3, 1e-3])[:, None]
    found = wanted + 0.1 * wanted * rng.standard_normal((2, 3, 8))
    expected = (np.square(found - wanted).sum(-1) / np.square(wanted).sum(-1)).mean()
    assert float(blockwise.relative_error(jnp.asarray(found), jnp.asarray(wanted))) == pytest.approx(
        expected, rel=1e-3
    )
    assert np.isfinite(float(blockwise.relative_error(jnp.ones((1, 2, 4)), jnp.zeros((1, 2, 4)))))


def test_interrupted_training_ends_in_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_checkpoint(tmp_path / "src", CONFIG)
    monkeypatch.setattr(recover_train, "memory_limit", lambda: 0)
    options: dict[str, Any] = {"bits": 3, "recover_text": TEXT, "recover_train": 12_000, **QUIET}
    whole = palettize(source, tmp_path / "whole", **options)
    assert whole.recovery is not None
    assert whole.recovery.losses is None
    real, append = blockwise._save, Hidden.append

    def after(path: Path, *state: Any) -> None:
        real(path, *state)
        raise KeyboardInterrupt

    def between(self: Hidden, values: Any) -> None:
        append(self, values)
        if self.path.name.startswith("student-0002"):
            raise KeyboardInterrupt

    def never(*_: Any) -> None:
        raise KeyboardInterrupt

    for owner, name, replacement in (
        (blockwise, "_save", never),
        (blockwise, "_save", after),
        (Hidden, "append", between),
        (recover_train, "_stored", never),
    ):
        stopped(source, tmp_path / "dst", monkeypatch, owner, name, replacement, **options)
        # What was decided in the first run holds in the others.
        monkeypatch.setattr(recover_train, "memory_limit", lambda: None)
    check_resumed(source, tmp_path / "dst", whole, tmp_path / "whole", **options)


def test_what_does_not_fit_into_memory_is_trained_by_blocks_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_checkpoint(tmp_path / "src", CONFIG)
    monkeypatch.setattr(recover_train, "memory_limit", lambda: 1000)
    monkeypatch.setattr(recover_train, "distil", None)
    options = {**OPTIONS, "bits": 2, "recover_train": 60_000}
    palettize(source, tmp_path / "plain", bits=2, calibration=TEXT, recover=16, **QUIET)
    report = palettize(source, tmp_path / "dst", **options)
    assert report.recovery is not None
    assert report.recovery.losses is None
    models = [open_model(tmp_path / name) for name in ("src", "plain", "dst")]
    states = on_unseen_text(models, lambda graph, *rest: interpreter.run(graph.ops[:-2], *rest))
    before, after = (float(blockwise.relative_error(state, states[0])) for state in states[1:])
    assert after < 0.9 * before
    palettize(source, tmp_path / "few", **{**options, "recover_train": 1})  # less than a step


def test_a_loss_that_is_not_finite_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_checkpoint(tmp_path / "src", CONFIG)
    monkeypatch.setattr(recover_train, "memory_limit", lambda: 0)
    monkeypatch.setattr(blockwise, "relative_error", lambda a, b: (a - b).sum() * jnp.nan)
    with pytest.raises(AdapterError, match="loss of block 1 is nan at step 1"):
        palettize(source, tmp_path / "dst", **OPTIONS)
    assert names(tmp_path) == ["src"]  # nothing to come back to


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"?" * 200, None])
def test_damaged_state_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes | None
) -> None:
    source = write_checkpoint(tmp_path / "src", CONFIG)
    monkeypatch.setattr(recover_train, "memory_limit", lambda: 0)
    options: dict[str, Any] = {"bits": 3, "recover_text": TEXT, "recover_train": 4_000, **QUIET}
    palettize(source, tmp_path / "whole", **options)
    real = blockwise._save

    def stop(path: Path, *state: Any) -> None:
        real(path, *state)
        raise KeyboardInterrupt

    stopped(source, tmp_path / "dst", monkeypatch, blockwise, "_save", stop, **options)
    (file,) = tmp_path.glob("dst.partial-*/blocks.npz")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    palettize(source, tmp_path / "dst", **options)
    assert tree(tmp_path / "dst") == tree(tmp_path / "whole")


def test_layers_that_training_makes_worse_stay_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_checkpoint(tmp_path / "src", CONFIG)
    monkeypatch.setattr(recover_train, "memory_limit", lambda: 0)
    wild = Settings(tokens=1024, rates=tuple((group, 3.0) for group, _ in Settings().rates))
    monkeypatch.setattr(recover_train, "BLOCK_SETTINGS", wild)
    palettize(source, tmp_path / "plain", bits=3, **QUIET)
    options: dict[str, Any] = {"bits": 3, "recover_text": TEXT, "recover_train": 3_000, **QUIET}
    report = palettize(source, tmp_path / "dst", **options)
    assert report.recovery is not None and report.recovery.training is not None
    assert report.recovery.training.worse == report.recovery.training.parts == 2
    one, two = (tree(tmp_path / name)["model.safetensors"] for name in ("dst", "plain"))
    assert one == two


def test_memory_of_the_machine_and_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = open_model(write_checkpoint(tmp_path / "src", CONFIG)).graph
    weights = sum(int(np.prod(weight.shape)) for weight in graph.weights().values())
    assert 9 * weights < room.end_to_end_bytes(graph, 1) < room.end_to_end_bytes(graph, 2048)
    monkeypatch.setattr(memory, "machine_memory", lambda: 1_000_000)
    assert room.memory_limit() == 700_000
    monkeypatch.setattr(memory, "machine_memory", lambda: None)
    limit = room.memory_limit()
    assert limit is None or limit > 1_000_000
    monkeypatch.delattr("os.sysconf", raising=False)
    assert room.memory_limit() is None
