"""Adapters: attached in all interpreters alike, PEFT's files in and out, and misfits refused."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import adapters
import pocketlm
from checkpoints import safetensors_bytes, weights, write_checkpoint
from independent.cases import llama, openelm
from independent.test_engine_agreement import bound
from palettizing import QUIET
from pocketlm import _core, errors
from pocketlm.adapters.attach import LowRank, attach, is_adapter
from pocketlm.adapters.config import read_config, stored_bytes
from pocketlm.adapters.write import write_adapter
from pocketlm.describe import describe
from pocketlm.graph import Linear
from pocketlm.interpret import jax as jax_interpreter
from pocketlm.interpret.reference import Reference
from pocketlm.loading import LoadedModel, open_model
from pocketlm.palettize import palettize

CONFIGS = {"llama": llama(), "openelm": openelm(), "biases": llama(attention_bias=True, mlp_bias=True)}
IDS = np.random.default_rng(2).integers(0, 97, 70)


def dense(model: LoadedModel) -> dict[str, np.ndarray]:
    return {name: model.store.dense(name) for name in model.store.names()}


def merged(config: dict[str, Any], found: dict[str, adapters.Pair], scale: dict[str, float]) -> Reference:
    """The oracle with the terms added to the weights, which never happens elsewhere."""
    arrays = {name: value.astype(np.float64) for name, value in weights(config).items()}
    for name, (a, b) in found.items():
        halves = [m.astype(np.float16).astype(np.float64) for m in (b, a)]
        arrays[name] = arrays[name] + scale[name] * halves[0] @ halves[1]
    return Reference(pocketlm.families.build_graph(config), arrays)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("rslora", [False, True])
def test_all_interpreters_add_the_scaled_terms(tmp_path: Path, config: dict[str, Any], rslora: bool) -> None:
    found = adapters.pairs(config)
    path = write_checkpoint(tmp_path / "m", config)
    adapters.write(path, found, use_rslora=rslora)
    model = open_model(path)
    scale = {name: 8 / (math.sqrt(len(a)) if rslora else len(a)) for name, (a, _) in found.items()}
    expected = merged(config, found, scale).logits(IDS)
    assert (
        np.abs(expected - Reference(open_model(path, adapter=None).graph, dense(model)).logits(IDS)).max()
        > 0.1
    )
    largest = np.abs(expected).max()
    assert np.abs(Reference(model.graph, dense(model)).logits(IDS) - expected).max() < 1e-9 * largest
    params = {name: jnp.asarray(value) for name, value in dense(model).items()}
    by_jax = np.asarray(jax_interpreter.logits(model.graph, params, jnp.asarray(IDS)[None]))[0]
    assert np.abs(by_jax - expected).max() < 1e-4 * largest
    with pocketlm.load(path) as lm:
        assert np.abs(lm.logits(IDS) - expected).max() < 1e-2 * largest  # f16 keys and values


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("int8", [False, True])
def test_palettized_models_keep_to_the_bound(tmp_path: Path, config: dict[str, Any], int8: bool) -> None:
    found = adapters.pairs(config, rank=16)
    palettize(write_checkpoint(tmp_path / "src", config), tmp_path / "m", bits=4, **QUIET)
    write_adapter(tmp_path / "m" / "adapters" / "recovery", found, "src", int8=int8)
    model = open_model(tmp_path / "m")
    kinds = {model.store.info(op.weight.name).kind for op in model.graph.linears() if is_adapter(op)}
    assert kinds == ({"p8"} if int8 else {"f16"})
    traced = _core.Engine(model.graph.to_json(), model.store, cache_tokens=256).trace(IDS)
    values = dense(model)
    oracle = Reference(model.graph, values)
    palettes = {name for name in model.store.names() if model.store.info(name).kind.startswith("p")}
    for op in model.graph.ops:
        if isinstance(op, Linear):
            x = traced[model.graph.ops[op.x].name].astype(np.float64)
            limit = bound(op, x, values, op is model.graph.head())
            if op.weight.name not in palettes:  # float32 sums
                limit = (
                    (x.shape[1] + 4) * 2.0**-24 * (np.abs(x) @ np.abs(values[op.weight.name].T.astype(float)))
                )
            error = np.abs(traced[op.name] - oracle.apply(op, IDS, x))
            assert (error <= limit + 1e-30).all(), op.name


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("int8", [False, True])
def test_batches_chunks_and_threads_change_nothing(
    tmp_path: Path, config: dict[str, Any], int8: bool
) -> None:
    palettize(write_checkpoint(tmp_path / "src", config), tmp_path / "m", bits=4, **QUIET)
    write_adapter(tmp_path / "m" / "adapters" / "recovery", adapters.pairs(config, rank=20), "src", int8=int8)
    model = open_model(tmp_path / "m")
    graph = model.graph.to_json()
    one = _core.Engine(graph, model.store, threads=1, cache_tokens=1024)
    expected = one.trace(IDS)[model.graph.ops[-1].name]
    for threads in (1, 2, 3):
        engine = _core.Engine(graph, model.store, threads=threads, cache_tokens=1024)
        sequence = engine.sequence()
        rows = [
            engine.step([(sequence, part, None, "all")])[0].logits
            for part in np.split(IDS, [1, 2, 19, 20, 37])
        ]
        np.testing.assert_array_equal(np.concatenate(rows), expected)  # type: ignore[arg-type]
        together = engine.step([(engine.sequence(), IDS[:n], None, "all") for n in (1, 5, 30)])
        for result, n in zip(together, (1, 5, 30), strict=True):
            np.testing.assert_array_equal(result.logits, expected[:n])


def test_our_files_are_peft_files_and_come_back(tmp_path: Path) -> None:
    config = llama()
    found = adapters.pairs(config)
    path = write_checkpoint(tmp_path / "m", config)
    directory = path / "adapters" / "recovery"
    write_adapter(directory, found, "base", int8=False)
    assert sorted(file.name for file in directory.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    stored = load_file(directory / "adapter_model.safetensors")  # the library that PEFT reads with
    expected = adapters.tensors(found)
    assert set(stored) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(stored[name], value)
    written = json.loads((directory / "adapter_config.json").read_text())
    assert set(written) <= set(adapters.config_of(found))  # no key that PEFT does not know
    assert written["peft_type"] == "LORA"
    assert set(written["target_modules"]) == {name.removesuffix(".weight") for name in found}
    config_read = read_config(directory)
    model = open_model(path)
    assert model.adapter is not None
    for name, term in model.adapter.terms.items():
        module = name.removesuffix(".weight")
        assert (term.rank, term.scale) == (len(found[name][0]), 1.0)
        assert config_read.rank_of(module) == term.rank
        np.testing.assert_array_equal(model.store.dense(term.a), found[name][0].astype(np.float16))
    again = tmp_path / "again"
    pairs = {
        name: (model.store.dense(term.a), model.store.dense(term.b))
        for name, term in model.adapter.terms.items()
    }
    write_adapter(again, pairs, "base", int8=False)
    for file in directory.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes()


def test_the_int8_form_says_so_and_is_close(tmp_path: Path) -> None:
    config = llama()
    found = adapters.pairs(config, rank=40)
    path = write_checkpoint(tmp_path / "m", config)
    directory = path / "adapters" / "recovery"
    write_adapter(directory, found, "base", int8=True)
    assert not (directory / "adapter_model.safetensors").exists()  # which PEFT would open
    assert "pocketlm" in json.loads((directory / "adapter_config.json").read_text())
    model = open_model(path)
    assert model.adapter is not None
    total = 0
    for name, (a, b) in found.items():
        term = model.adapter.terms[name]
        for stored, value in ((term.a, a), (term.b, b)):
            step = np.abs(value).max(axis=1, keepdims=True) / 127
            assert (np.abs(model.store.dense(stored) - value) <= 0.51 * step).all()
            total += model.store.info(stored).bytes
        assert sum(model.store.info(t).bytes for t in (term.a, term.b)) == stored_bytes(
            len(a), *b.shape[:1], *a.shape[1:], int8=True
        )
    assert describe(model.graph, model.store).adapter_bytes == total


def test_sizes_count_the_adapter(tmp_path: Path) -> None:
    config = llama()
    path = write_checkpoint(tmp_path / "m", config)
    bare = describe(open_model(path).graph, open_model(path).store)
    found = adapters.pairs(config)
    adapters.write(path, found)
    with pocketlm.load(path) as lm, pocketlm.load(path, adapter=None) as without:
        info = lm.info
        extra = sum(a.size + b.size for a, b in found.values())
        assert (info.adapter_parameters, info.adapter_bytes) == (extra, 2 * extra)
        assert info.bytes == bare.bytes + 2 * extra
        assert info.parameters == bare.parameters
        assert info.bits_per_weight_projections == bare.bits_per_weight_projections
        assert info.bits_per_weight_all == pytest.approx(8 * info.bytes / bare.parameters)
        assert dataclasses.replace(without.info) == bare
        read = lm.engine.weight_bytes_per_token, without.engine.weight_bytes_per_token
        assert read[0] - read[1] == 2 * extra
        assert lm._identify is not None
        assert without._identify is not None
        assert lm._identify() != without._identify()


def test_ranks_and_scales_by_pattern(tmp_path: Path) -> None:
    found = adapters.pairs(llama(), rank=6)
    down = "model.layers.1.mlp.down_proj.weight"
    path = write_checkpoint(tmp_path / "m", llama())
    adapters.write(path, found, alpha_pattern={"layers.1.mlp.down_proj": 3, "q_proj": 2}, lora_alpha=12)
    model = open_model(path)
    assert model.adapter is not None
    terms = model.adapter.terms
    assert terms[down].scale == 3 / len(found[down][0])
    for name, term in terms.items():
        if name != down:
            assert term.scale == (2 if "q_proj" in name else 12) / term.rank


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"peft_type": "LOHA"}, errors.UnsupportedError, "LOHA"),
        ({"use_dora": True}, errors.UnsupportedError, "use_dora"),
        ({"bias": "all"}, errors.UnsupportedError, "bias"),
        ({"modules_to_save": ["lm_head"]}, errors.UnsupportedError, "modules_to_save"),
        ({"layer_replication": [[0, 2]]}, errors.UnsupportedError, "layer_replication"),
        ({"lora_bias": True}, errors.UnsupportedError, "lora_bias"),
        ({"use_qalora": True}, errors.UnsupportedError, "use_qalora"),
        ({"target_parameters": ["x"]}, errors.UnsupportedError, "target_parameters"),
        ({"trainable_token_indices": [1]}, errors.UnsupportedError, "trainable_token_indices"),
        ({"alora_invocation_tokens": [1, 2]}, errors.UnsupportedError, "alora_invocation_tokens"),
        ({"a_future_option": "on"}, errors.UnsupportedError, "a_future_option"),
        ({"r": 0, "rank_pattern": {}}, errors.AdapterError, "'r'"),
        ({"r": True}, errors.AdapterError, "'r'"),
        ({"r": 10**9}, errors.AdapterError, "'r'"),
        ({"r": None}, errors.AdapterError, "'r'"),
        ({"rank_pattern": {"q_proj": 0}}, errors.AdapterError, "rank_pattern.q_proj"),
        ({"rank_pattern": ["q_proj"]}, errors.AdapterError, "rank_pattern"),
        ({"rank_pattern": {"(a+)+$": 4}}, errors.UnsupportedError, "rank_pattern"),
        ({"rank_pattern": {"a\\": 4}}, errors.AdapterError, "rank_pattern"),
        ({"rank_pattern": {}, "r": 9}, errors.AdapterError, "rank 9"),
        ({"lora_alpha": 0}, errors.AdapterError, "lora_alpha"),
        ({"lora_alpha": float("nan")}, errors.AdapterError, "lora_alpha"),
        ({"lora_alpha": "16"}, errors.AdapterError, "lora_alpha"),
        ({"use_rslora": "yes"}, errors.AdapterError, "use_rslora"),
        ({"pocketlm": {"weights": "../other"}}, errors.AdapterError, "pocketlm"),
        ({"pocketlm": {"weights": "adapter_model.int8.safetensors"}}, errors.MissingFileError, "int8"),
    ],
)
def test_configurations_that_are_refused(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    path = write_checkpoint(tmp_path / "m", llama())
    adapters.write(path, adapters.pairs(llama()), **change)
    with pytest.raises(error, match=message):
        open_model(path)
    assert open_model(path, adapter=None).adapter is None


A, B = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: t.pop(B), errors.AdapterError, "q_proj.*lora_A alone"),
        (lambda t: t.pop(A), errors.AdapterError, "q_proj.*lora_B alone"),
        (lambda t: t.clear(), errors.AdapterError, "no weights"),
        (lambda t: t.update({A: t[A][:, 1:]}), errors.AdapterError, "shape"),
        (lambda t: t.update({B: t[B].T}), errors.AdapterError, "shape"),
        (lambda t: t.update({B: t[B].ravel()}), errors.AdapterError, "shape"),
        (lambda t: t.update({A: np.zeros((5, 72), np.int64)}), errors.AdapterError, "type"),
        (
            lambda t: t.update({f"{Q}.lora_magnitude_vector": np.ones(72)}),
            errors.UnsupportedError,
            "magnitude",
        ),
        (lambda t: t.update({"model.norm.weight": np.ones(72)}), errors.FileFormatError, "too"),
        (lambda t: t.update({A: np.full((5, 72), np.nan)}), errors.WeightError, "q_proj.*not finite"),
    ],
)
def test_weights_that_are_refused(tmp_path: Path, change: Any, error: type[Exception], message: str) -> None:
    path = write_checkpoint(tmp_path / "m", llama())
    found = adapters.pairs(llama())
    directory = adapters.write(path, found)
    stored = adapters.tensors(found)
    change(stored)
    stored = {k: v.astype(np.float16) if v.dtype == np.float64 else v for k, v in stored.items()}
    (directory / "adapter_model.safetensors").write_bytes(safetensors_bytes(stored))
    with pytest.raises(error, match=message):
        open_model(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.7.mlp.up_proj.weight", "layers.7.mlp.up_proj.*no place"),
        ("model.norm.weight", "model.norm.*no place"),
        ("model.embed_tokens.weight", "embed_tokens"),
    ],
)
def test_targets_that_the_model_has_not(tmp_path: Path, name: str, message: str) -> None:
    config = llama(tie_word_embeddings=True)
    path = write_checkpoint(tmp_path / "m", config)
    a, b = np.zeros((5, 72), np.float32), np.zeros((97, 5), np.float32)
    adapters.write(path, {name: (a, b)})
    with pytest.raises(errors.AdapterError, match=message):
        open_model(path)


def test_damaged_files_and_wrong_arguments(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m", llama())
    directory = adapters.write(path, adapters.pairs(llama()))
    for bad in ("qa", "", 3, True):
        with pytest.raises(errors.ParameterError, match="adapter"):
            pocketlm.load(path, adapter=bad)  # type: ignore[arg-type]
    file = directory / "adapter_model.safetensors"
    whole = file.read_bytes()
    for cut in (0, 7, 100, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(errors.FileFormatError, match="adapter_model"):
            open_model(path)
    file.unlink()
    with pytest.raises(errors.MissingFileError, match="adapter_model"):
        open_model(path)
    for text in ("", "[1]", "{", '{"r": '):
        (directory / "adapter_config.json").write_text(text)
        with pytest.raises(errors.AdapterError, match="adapter_config"):
            open_model(path)
    (directory / "adapter_config.json").unlink()
    with pytest.raises(errors.MissingFileError, match="adapter_config"):
        open_model(path)
    directory.rmdir()
    directory.write_text("a file")
    with pytest.raises(errors.MissingFileError, match="not a directory"):
        open_model(path)


def test_values_beyond_half_precision_are_not_written(tmp_path: Path) -> None:
    for value in (np.inf, np.nan, 1e6):
        a, b = np.ones((2, 8), np.float32), np.ones((8, 2), np.float32)
        b[3, 1] = value
        with pytest.raises(errors.AdapterError, match="lora_B"):
            write_adapter(tmp_path / "x", {"w.weight": (a, b)}, "base", int8=True)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_an_adapter_of_zeros_on_the_head_changes_no_bit(tmp_path: Path, scale: float) -> None:
    palettize(write_checkpoint(tmp_path / "src", llama()), tmp_path / "m", bits=4, **QUIET)
    model = open_model(tmp_path / "m")
    outputs, inputs = model.graph.weights()["lm_head.weight"].shape
    zeros = _core.WeightStore()
    zeros.add("a", np.zeros((4, inputs), np.float32))
    zeros.add("b", np.zeros((outputs, 4), np.float32))
    graph = attach(model.graph, {"lm_head.weight": LowRank("a", "b", 4, scale)})
    heads = [found.head() for found in (model.graph, graph)]
    assert [op.weight.name for op in heads if op is not None] == ["lm_head.weight"] * 2
    logits = []
    for each, store in ((model.graph, model.store), (graph, model.store.overlay(zeros))):
        engine = _core.Engine(each.to_json(), store, cache_tokens=256)
        logits.append(engine.step([(engine.sequence(), IDS, None, "all")])[0].logits)
    np.testing.assert_array_equal(*logits)


def test_attaching_nothing_changes_nothing() -> None:
    graph = pocketlm.families.build_graph(openelm())
    assert attach(graph, {}) == graph
