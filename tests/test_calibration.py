"""Statistics of a model's inputs: right, complete, and used as they should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibrating import TEXT, some_windows
from checkpoints import weights, write_checkpoint
from independent.cases import llama, openelm
from palettizing import QUIET, names
from pocketlm._core import Engine
from pocketlm.errors import ParameterError, WeightError
from pocketlm.families import build_graph
from pocketlm.graph import Linear
from pocketlm.loading import open_model
from pocketlm.palettize import compensate, palettize
from pocketlm.palettize.calibrate import calibrate
from pocketlm.palettize.importance import Importance, Statistics
from pocketlm.palettize.segments import segments

CONFIGS = {"llama": llama(), "tied": llama(tie_word_embeddings=True), "openelm": openelm()}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_moments_are_those_of_what_the_whole_model_computes(tmp_path: Path, config: dict[str, Any]) -> None:
    model = open_model(write_checkpoint(tmp_path / "src", config))
    windows = some_windows(config["vocab_size"])
    found = calibrate(model, windows, tmp_path / "cal", progress=False, threads=2)
    engine = Engine(model.graph.to_json(), model.store, cache_tokens=64, precise=True)
    traces = [engine.trace(window) for window in windows]
    for op in model.graph.ops:
        if isinstance(op, Linear):
            # The parts of the model compute the very same numbers; only the sums are rounded to float32.
            x = np.concatenate([trace[model.graph.ops[op.x].name] for trace in traces]).astype(np.float64)
            moment = found.second_moment(op.weight.name)
            bound = 1e-6 * (np.abs(x).T @ np.abs(x)) / len(x)
            assert (np.abs(moment - x.T @ x / len(x)) <= bound).all()
            np.testing.assert_array_equal(moment, moment.T)
    assert found.tokens == windows.size
    tied = config.get("tie_word_embeddings", False) or "share_input_output_layers" in config
    if not tied:
        assert not found.multiplies("model.embed_tokens.weight")
        with pytest.raises(ParameterError, match=r"embed_tokens.*looked up"):
            found.second_moment("model.embed_tokens.weight")


def test_segments_cover_the_graph_and_end_where_one_value_passes() -> None:
    for config in CONFIGS.values():
        graph = build_graph(config)
        parts = segments(graph)
        assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
        assert (parts[0].start, parts[-1].stop) == (0, len(graph.ops))
        assert len(parts) > config.get("num_hidden_layers", config.get("num_transformer_layers", 0))
        for part in parts[1:]:
            crossing = {i for op in graph.ops[part.start :] for i in op.inputs() if i < part.start}
            assert crossing == {part.start - 1}


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    arrays = weights(llama())
    for name in ("gate", "up"):
        arrays[f"model.layers.0.mlp.{name}_proj.weight"] *= 1e25  # their products overflow
    model = open_model(write_checkpoint(tmp_path / "src", arrays=arrays))
    with pytest.raises(WeightError, match=r"layers\.\d.*not finite"):
        calibrate(model, some_windows(90), tmp_path / "cal", progress=False)
    assert names(tmp_path) == ["src"]


def test_rows_that_are_looked_up_too_stay_nearer_to_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, errors = "model.embed_tokens.weight", {}
    config = llama(tie_word_embeddings=True)
    src = write_checkpoint(tmp_path / "src", config)
    for label, damping in (("as it is", compensate.LOOKED_UP_DAMPING), ("as a head", compensate.DAMPING)):
        monkeypatch.setattr(compensate, "LOOKED_UP_DAMPING", damping)
        palettize(
            src, tmp_path / label, calibration=[TEXT], embedding_bits=3, validation=["w1 w2 " * 130], **QUIET
        )
        made, source = open_model(tmp_path / label).store.dense(name), open_model(src).store.dense(name)
        errors[label] = float(np.square(made.astype(np.float64) - source).sum())
    assert errors["as it is"] < 0.98 * errors["as a head"]
    model = open_model(src)
    assert Importance(model, Statistics()).looked_up == {name}
