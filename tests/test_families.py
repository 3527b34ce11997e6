"""Families: what they build from the published configurations, and what they refuse."""

from __future__ import annotations

import inspect
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from independent.cases import CASES, llama, openelm
from pocketlm._core import Engine, WeightStore
from pocketlm.builder import GraphBuilder
from pocketlm.errors import ConfigError
from pocketlm.families import build_graph, family, model_types
from pocketlm.families.config import HARMLESS
from pocketlm.graph import Attention, Graph, Rope, Weight


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


def test_families_can_be_added() -> None:
    @family("test-llama")
    def build(config: Any) -> Graph:
        config.expect("hidden_act", "silu")
        return build_graph({key: config.raw(key) for key in llama()} | {"model_type": "llama"})

    assert "test-llama" in model_types()
    assert build_graph(llama(model_type="test-llama")) == build_graph(llama())


def test_a_family_that_returns_no_graph(name: str = "test-forgetful") -> None:
    @family(name)
    def build(config: Any) -> Any:
        for key in llama():
            config.raw(key)

    with pytest.raises(ConfigError, match=rf"my.json: 'model_type' is '{name}', whose family returned None"):
        build_graph(llama(model_type=name), "my.json")


def test_operations_of_one_name_are_refused() -> None:
    def graph(first: str, second: str) -> Graph:
        g = GraphBuilder("twins", 8, 16)
        x = g.embed("embed", Weight("e", (8, 6)))
        with g.layer(0):
            x = g.linear(x, first, "a", 6)
            x = g.linear(x, second, "b", 6)
        g.head(x, "e", 8)
        return g.build()

    assert len(graph("ffn.up", "ffn.down").ops) == 4
    with pytest.raises(ConfigError, match=r"'twins': two operations are called 'layers.0.ffn.up'"):
        graph("ffn.up", "ffn.up")


MODULE = """
from pocketlm.families import build_graph, family

@family({registered!r})
def build(config):
    return build_graph({{key: config.raw(key) for key in config._values}} | {{"model_type": "llama"}})
{more}
"""


def install(folder: Path, name: str, points: str, registered: str = "", more: str = "") -> None:
    """A distribution of one module, as an installer leaves it in a directory of ``sys.path``."""
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(MODULE.format(registered=registered or name, more=more))
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[pocketlm.families]\n{points}\n")


def test_families_of_other_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "outside-a", "outside-a = outside_a\noutside-a2 = outside_a:build")
    install(tmp_path, "outside-b", "outside-b = outside_b:build")
    monkeypatch.syspath_prepend(tmp_path)
    assert build_graph(llama(model_type="outside-a")) == build_graph(llama())
    assert "outside_b" not in sys.modules
    assert build_graph(llama(model_type="outside-b")) == build_graph(llama())
    with pytest.raises(ConfigError, match=r"'outside-c' is not supported; .*llama, openelm, outside-a, outs"):
        build_graph(llama(model_type="outside-c"))


@pytest.mark.parametrize(
    ("points", "registered", "more", "message"),
    [
        ("{0} = {0}_not", "", "", r"{0} = {0}_not of pocketlm.families failed: ModuleNotFoundError"),
        ("{0} = {0}:other", "", "", r"{0} = {0}:other of pocketlm.families failed: AttributeError"),
        ("{0} = {0}", "", "1 / 0", r"{0} = {0} of pocketlm.families failed: ZeroDivisionError"),
        ("{0} = {0}", "", "def", r"{0} = {0} of pocketlm.families failed: SyntaxError"),
        ("{0} = no module", "", "", r"{0} = no module of pocketlm.families failed"),
        ("{0} = {0}", "another", "", r"{0} = {0} of pocketlm.families registers no such family"),
        ("{0} = {0}\n{0} = {0}:build", "", "", r"{0} = {0} and {0} = {0}:build .*only one"),
    ],
)
def test_entry_points_that_fail(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    points: str,
    registered: str,
    more: str,
    message: str,
) -> None:
    name = f"broken{abs(hash(request.node.name))}"
    install(tmp_path, name, points.format(name), registered, more)
    monkeypatch.syspath_prepend(tmp_path)
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"some.json: 'model_type' '{name}': .*" + message.format(name)):
            build_graph(llama(model_type=name), "some.json")


def test_known_models_look_for_no_other_packages() -> None:
    code = "from importlib import metadata; metadata.entry_points = None; import pocketlm; pocketlm.load()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_help_explains_the_builder() -> None:
    for name, method in inspect.getmembers(GraphBuilder, inspect.isfunction):
        if not name.startswith("_"):
            assert inspect.getdoc(method), name


def test_what_does_not_fit_together_is_refused_by_the_engine() -> None:
    g = GraphBuilder("misfit", 8, 16)
    x = g.embed("embed", Weight("e", (8, 6)))
    with g.layer(3):
        x = g.add(x, g.slice(x, "half", 0, 3), "sum")
    g.head(x, "e", 8)
    with pytest.raises(ConfigError, match=r"layers\.3\.sum.*width"):
        Engine(g.build().to_json(), WeightStore(), cache_tokens=64)
