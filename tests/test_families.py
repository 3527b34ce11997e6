"""Families: what they build from the published configurations, and what they refuse."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from independent.cases import CASES, llama, openelm
from pocketlm.builder import GraphBuilder
from pocketlm.families import build_graph, family, model_types
from pocketlm.families.config import HARMLESS
from pocketlm.graph import Attention, Graph, Rope, Rotary, Weight


def parameters(graph: Graph) -> int:
    return sum(math.prod(weight.shape) for weight in graph.weights().values())


def published(layers: int, width: int, head_dim: int) -> dict[str, Any]:
    """The part of a published OpenELM configuration that decides the shapes."""
    ffn = [round(v, 2) for v in np.linspace(0.5, 4.0, layers).tolist()]
    return {
        "model_type": "openelm",
        "num_transformer_layers": layers,
        "model_dim": width,
        "head_dim": head_dim,
        "vocab_size": 32000,
        "num_gqa_groups": 4,
        "qkv_multipliers": [0.5, 1.0],
        "ffn_multipliers": ffn,
        "ffn_dim_divisor": 256,
    }


# Sizes, parameters and runs of equal numbers of heads as the paper and the published checkpoints have them.
PUBLISHED = {
    "270M": ((16, 1280, 64), 271_527_168, [12] * 5 + [16] * 7 + [20] * 4),
    "450M": ((20, 1536, 64), 457_179_136, [12] * 3 + [16] * 7 + [20] * 6 + [24] * 4),
    "1.1B": ((28, 2048, 64), 1_079_891_456, [16] * 3 + [20] * 7 + [24] * 8 + [28] * 6 + [32] * 4),
    "3B": ((36, 3072, 128), 3_036_647_424, [12] * 4 + [16] * 14 + [20] * 12 + [24] * 6),
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_openelm(size: str) -> None:
    shape, count, heads = PUBLISHED[size]
    config = published(*shape)
    graph = build_graph(config)
    assert parameters(graph) == count
    attentions = [op for op in graph.ops if isinstance(op, Attention)]
    assert [op.heads for op in attentions] == heads
    assert [op.kv_heads for op in attentions] == [h // 4 for h in heads]
    assert sum("norm" in op.name for op in graph.ops) == 4 * shape[0] + 1
    stated = {"num_query_heads": heads, "num_kv_heads": [h // 4 for h in heads]}
    two_ends = {"ffn_multipliers": [0.5, 4.0]}
    expanded = {"qkv_multipliers": [round(v, 2) for v in np.linspace(0.5, 1.0, shape[0]).tolist()]}
    for form in (stated, two_ends, expanded, stated | two_ends | expanded):
        assert build_graph(config | form) == graph


def test_openelm_accepts_one_factor_and_one_layer() -> None:
    uniform = openelm(qkv_multipliers=1.0, ffn_multipliers=2, num_query_heads=6, num_kv_heads=3)
    assert {op.heads for op in build_graph(uniform).ops if isinstance(op, Attention)} == {6}
    single = openelm(
        num_transformer_layers=1, ffn_multipliers=[1.5, 4.0], num_query_heads=[4], num_kv_heads=[2]
    )
    graph = build_graph(single)
    assert graph.weights()["transformer.layers.0.ffn.proj_2.weight"].shape == (72, 110)


def test_llama_parameter_counts() -> None:
    tinyllama = llama(
        vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22,
        num_attention_heads=32, num_key_value_heads=4,
    )  # fmt: skip
    assert parameters(build_graph(tinyllama)) == 1_100_048_384
    llama32 = llama(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
        num_attention_heads=32, num_key_value_heads=8, head_dim=64, tie_word_embeddings=True,
    )  # fmt: skip
    assert parameters(build_graph(llama32)) == 1_235_814_400


def frequencies(config: dict[str, Any]) -> np.ndarray[Any, Any]:
    (rotary,) = {op.rotary for op in build_graph(config).ops if isinstance(op, Rope)}
    assert rotary.scale == 1.0
    assert not rotary.interleaved
    return np.array(rotary.frequencies)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama31_frequencies(factor: float) -> None:
    """Against the rule as Llama's authors state it, on wavelengths and with three branches."""
    scaling = {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = llama(hidden_size=128, num_attention_heads=1, num_key_value_heads=1, rope_theta=500000.0)
    plain = frequencies(config)
    np.testing.assert_allclose(plain, 1.0 / (500000.0 ** (np.arange(0, 128, 2) / 128)), rtol=1e-14)
    expected = []
    for frequency in plain:
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4.0:
            expected.append(frequency)
        elif wavelength > 8192 / 1.0:
            expected.append(frequency / factor)
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            expected.append((1 - smooth) * frequency / factor + smooth * frequency)
    found = frequencies(config | {"rope_scaling": scaling})
    np.testing.assert_allclose(found, expected, rtol=1e-13)
    kept, divided = np.isclose(found, plain, rtol=1e-12), np.isclose(found, plain / factor, rtol=1e-12)
    assert kept.any()
    assert divided.any()
    assert (~kept & ~divided).any()
    newer = {key: value for key, value in config.items() if key != "rope_theta"}
    newer["rope_parameters"] = scaling | {"rope_theta": 500000.0}
    np.testing.assert_array_equal(frequencies(newer), found)


def test_forms_of_the_rotary_configuration() -> None:
    plain = build_graph(llama())
    for same in (
        {"rope_scaling": None},
        {"rope_scaling": {"rope_type": "default"}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        {"rope_parameters": {"rope_theta": 10000}},
        {"rope_parameters": {"rope_type": "default"}},
    ):
        assert build_graph(llama(**same)) == plain, same
    linear = build_graph(llama(rope_scaling={"type": "linear", "factor": 4.0}))
    assert build_graph(llama(rope_parameters={"rope_type": "linear", "factor": 4})) == linear
    assert build_graph(llama(rope_scaling={"rope_type": "linear", "type": "linear", "factor": 4})) == linear


def test_absent_keys_have_the_published_defaults() -> None:
    values = llama()
    for key in ("rope_theta", "tie_word_embeddings", "attention_bias", "mlp_bias", "num_key_value_heads"):
        del values[key]
    assert build_graph(values) == build_graph(llama())
    assert build_graph(llama(head_dim=None, sliding_window=None)) == build_graph(llama())


def test_harmless_keys_are_accepted() -> None:
    extra = {key: "anything" for key in HARMLESS if key != "model_type"}
    assert build_graph(llama(**extra, pruned_heads={}, is_encoder_decoder=False)) == build_graph(llama())


@pytest.mark.parametrize("case", CASES)
def test_graphs_survive_json(case: str) -> None:
    graph = build_graph(CASES[case])
    data = json.loads(graph.to_json())
    assert len(data["ops"]) == len(graph.ops)
    assert len({op["name"] for op in data["ops"]}) == len(graph.ops)
    assert graph.ops[-1].width == data["vocab_size"]
    rotations = [op for op in graph.ops if isinstance(op, Rope)]
    numbers = [op["rotary"] for op in data["ops"] if op["kind"] == "rope"]
    # Each once, in order of first use; equal ones are the same, whichever object they are.
    assert list(dict.fromkeys(numbers)) == list(range(len(data["rotaries"])))
    assert len({op.rotary for op in rotations}) == len(data["rotaries"])
    for op, number in zip(rotations, numbers, strict=True):
        assert Rotary(**data["rotaries"][number] | {"frequencies": op.rotary.frequencies}) == op.rotary
        assert data["rotaries"][number]["frequencies"] == list(op.rotary.frequencies)


def test_equal_rotations_are_written_once() -> None:
    b = GraphBuilder("test", 8, 16)
    x = b.embed("embed", Weight("w", (8, 8)))
    for index, frequencies in enumerate([(1.0, 0.5), (1.0, 0.25), (1.0, 0.5)]):
        x = b.rope(x, f"turn{index}", 4, Rotary(frequencies))
    b.head(x, "w", 8)
    data = json.loads(b.build().to_json())
    assert [r["frequencies"] for r in data["rotaries"]] == [[1.0, 0.5], [1.0, 0.25]]
    assert [op["rotary"] for op in data["ops"] if op["kind"] == "rope"] == [0, 1, 0]


def test_families_can_be_added() -> None:
    @family("test-llama")
    def build(config: Any) -> Graph:
        config.expect("hidden_act", "silu")
        return build_graph({key: config.raw(key) for key in llama()} | {"model_type": "llama"})

    assert "test-llama" in model_types()
    assert build_graph(llama(model_type="test-llama")) == build_graph(llama())
