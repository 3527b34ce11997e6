"""Configurations that cannot be honoured: each a ``ConfigError`` that names the file and the key, at once."""

from __future__ import annotations

import math
import time
import tracemalloc
from typing import Any

import pytest

from independent.cases import LLAMA31, llama, openelm
from pocketlm.errors import ConfigError, PocketlmError
from pocketlm.families import build_graph

HUGE = [2**31, 2**63, 2**64 + 1, 10**30, 10**400, 10**5000]
NOT_SIZES: list[Any] = [0, -1, 1.5, 1.0, "8", True, [8], {}, math.nan, math.inf, *HUGE]
NOT_NUMBERS: list[Any] = [0, -1, "1e-5", True, [1], {}, math.nan, math.inf, -math.inf, 10**400, 10**5000]
LLAMA_SIZES = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
]
OPENELM_SIZES = [
    "vocab_size",
    "model_dim",
    "head_dim",
    "num_transformer_layers",
    "num_gqa_groups",
    "ffn_dim_divisor",
    "max_context_length",
]


def shown(value: Any) -> str:
    """The name of a test's value; Python does not print integers of thousands of digits."""
    return f"{value.bit_length()} bits" if isinstance(value, int) and value in HUGE else f"{value!r:.20}"


def refused(values: Any, *names: str) -> str:
    """Expects a ``ConfigError`` that has each of ``names`` in its message, soon and in little memory."""
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(ConfigError) as error:
        build_graph(values, "some/config.json")
    took, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    message = str(error.value)
    assert message.startswith("some/config.json")
    for name in names:
        assert name in message
    assert len(message) < 500
    assert took < 5, "no work should be done for a bad configuration"
    assert peak < 50e6
    return message


@pytest.mark.parametrize("value", [None, [], 3, "text", [("model_type", "llama")]])
def test_not_an_object(value: Any) -> None:
    refused(value, "object")


@pytest.mark.parametrize("value", ["gpt5", "", "LLAMA", 3, True, ["llama"], {"llama": 1}, "x" * 10_000, None])
def test_model_type(value: Any) -> None:
    message = refused({"model_type": value}, "model_type")
    if isinstance(value, str) and len(value) > 100:
        assert "llama, openelm" in message
    refused({}, "model_type", "missing")


@pytest.mark.parametrize("key", LLAMA_SIZES)
@pytest.mark.parametrize(
    "value", NOT_SIZES, ids=lambda v: f"{v!r:.20}" if v not in HUGE else f"{v.bit_length()}b"
)
def test_llama_sizes(key: str, value: Any) -> None:
    refused(llama(**{key: value}), repr(key))


@pytest.mark.parametrize("key", OPENELM_SIZES)
@pytest.mark.parametrize(
    "value", NOT_SIZES, ids=lambda v: f"{v!r:.20}" if v not in HUGE else f"{v.bit_length()}b"
)
def test_openelm_sizes(key: str, value: Any) -> None:
    refused(openelm(**{key: value}), repr(key))


def test_products_of_sizes() -> None:
    most = 1 << 24
    refused(
        llama(num_attention_heads=most, num_key_value_heads=1, head_dim=1024),
        "num_attention_heads",
        "head_dim",
    )
    refused(openelm(num_gqa_groups=most, head_dim=1024), "num_gqa_groups")
    wide = openelm(model_dim=most, ffn_multipliers=900, qkv_multipliers=900)
    del wide["num_query_heads"], wide["num_kv_heads"]
    refused(wide, "qkv_multipliers", "width")
    refused(wide | {"qkv_multipliers": 0.01}, "ffn_multipliers", "width")


def test_the_largest_accepted_graph_is_small() -> None:
    values = llama(num_hidden_layers=1024, num_attention_heads=1, num_key_value_heads=1, head_dim=1024)
    tracemalloc.start()
    build_graph(values)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta"])
@pytest.mark.parametrize(
    "value", NOT_NUMBERS, ids=lambda v: f"{v!r:.20}" if v not in HUGE else f"{v.bit_length()}b"
)
def test_numbers(key: str, value: Any) -> None:
    refused(llama(**{key: value}), repr(key))


@pytest.mark.parametrize("key", ["tie_word_embeddings", "attention_bias", "mlp_bias"])
@pytest.mark.parametrize("value", [0, 1, "true", [], 0.0])
def test_flags(key: str, value: Any) -> None:
    refused(llama(**{key: value}), repr(key), "true or false")


@pytest.mark.parametrize("key", [*LLAMA_SIZES[:5]])
@pytest.mark.parametrize("null", [False, True])
def test_missing_llama_keys(key: str, null: bool) -> None:
    values = llama()
    values[key] = None
    if not null:
        del values[key]
    refused(values, repr(key), "missing")


@pytest.mark.parametrize(
    "key", ["vocab_size", "model_dim", "num_transformer_layers", "qkv_multipliers", "ffn_multipliers"]
)
def test_missing_openelm_keys(key: str) -> None:
    values = openelm()
    del values[key]
    refused(values, repr(key), "missing")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sliding_window", 4096),
        ("attn_logit_softcapping", 50.0),
        ("query_pre_attn_scalar", 0),
        ("partial_rotary_factor", 0.5),
        ("num_local_experts", 8),
        ("quantization_config", {"quant_method": "gptq"}),
        ("quantization", {"group_size": 64, "bits": 4}),
        ("layer_types", ["sliding_attention"]),
        ("unheard_of", "value"),
        ("unheard_of", 0),
        ("is_encoder_decoder", True),
        ("a" * 5000, 1),
    ],
)
def test_unknown_keys_that_could_matter(key: str, value: Any) -> None:
    refused(llama(**{key: value}), key[:20])
    refused(openelm(**{key: value}), key[:20])


@pytest.mark.parametrize("value", ["quick_gelu", "", "SiLU", 1, ["silu"], "tanh" * 1000])
def test_activations(value: Any) -> None:
    refused(llama(hidden_act=value), "'hidden_act'", "gelu")
    refused(openelm(activation_fn_name=value), "'activation_fn_name'", "swish")


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"num_key_value_heads": 2}, ["num_key_value_heads", "divide"]),
        ({"num_key_value_heads": 6}, ["num_key_value_heads", "divide"]),
        ({"num_attention_heads": 7, "num_key_value_heads": 7}, ["num_attention_heads", "hidden_size"]),
        ({"hidden_size": 75}, ["head_dim", "even"]),
        ({"head_dim": 7}, ["head_dim", "even"]),
        ({"head_dim": 1026}, ["head_dim", "1024"]),
    ],
)
def test_llama_shapes_that_do_not_fit(changes: dict[str, Any], names: list[str]) -> None:
    refused(llama(**changes), *names)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"qkv_multipliers": [0.5, 0.6, 0.7, 1.0]}, ["qkv_multipliers", "2 or 3"]),
        ({"qkv_multipliers": []}, ["qkv_multipliers"]),
        ({"qkv_multipliers": "0.5"}, ["qkv_multipliers"]),
        ({"qkv_multipliers": [0.5, math.nan]}, ["qkv_multipliers"]),
        ({"qkv_multipliers": [0.5, -1]}, ["qkv_multipliers"]),
        ({"ffn_multipliers": [0.5, 10**5000]}, ["ffn_multipliers"]),
        ({"ffn_multipliers": [True, 4.0]}, ["ffn_multipliers"]),
        ({"ffn_multipliers": {"first": 1}}, ["ffn_multipliers"]),
        ({"num_query_heads": [4, 4, 6]}, ["num_query_heads", "[4, 6, 6]"]),
        ({"num_query_heads": 4}, ["num_query_heads"]),
        ({"num_kv_heads": [1, 1, 1]}, ["num_kv_heads"]),
        ({"num_kv_heads": "many"}, ["num_kv_heads"]),
        ({"head_dim": 9, "num_query_heads": None, "num_kv_heads": None}, ["head_dim", "even"]),
        ({"normalization_layer_name": "layer_norm"}, ["normalization_layer_name", "rms_norm"]),
        ({"rope_freq_constant": 0}, ["rope_freq_constant"]),
    ],
)
def test_openelm_shapes_that_do_not_fit(changes: dict[str, Any], names: list[str]) -> None:
    refused(openelm(**changes), *names)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("linear", ["object"]),
        ([1], ["object"]),
        ({"rope_type": "yarn", "factor": 4.0}, ["rope_type", "yarn", "llama3"]),
        ({"type": "dynamic", "factor": 2.0}, ["type", "dynamic"]),
        ({"rope_type": ["linear"]}, ["rope_type"]),
        ({"rope_type": "linear"}, ["factor", "missing"]),
        ({"rope_type": "linear", "factor": 0}, ["factor"]),
        ({"rope_type": "linear", "factor": 1e-320}, ["finite"]),
        ({"rope_type": "linear", "factor": 2.0, "beta_fast": 32}, ["beta_fast"]),
        ({"factor": 2.0}, ["factor"]),
        (LLAMA31 | {"low_freq_factor": 4.0}, ["high_freq_factor", "low_freq_factor"]),
        (LLAMA31 | {"high_freq_factor": None}, ["high_freq_factor", "missing"]),
        (LLAMA31 | {"original_max_position_embeddings": 1e9}, ["original_max_position_embeddings"]),
        (LLAMA31 | {"factor": math.inf}, ["factor"]),
        (LLAMA31 | {"attention_factor": 1.0}, ["attention_factor"]),
    ],
)
def test_rotary_parameters(key: str, value: Any, names: list[str]) -> None:
    refused(llama(**{key: value}), key, *names)


def test_rotary_contradictions() -> None:
    refused(llama(rope_parameters={"rope_theta": 5e5}), "rope_theta", "rope_parameters")
    both = {
        "rope_parameters": {"rope_type": "default"},
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    }
    refused(llama(**both), "rope_scaling", "rope_parameters")


def test_config_errors_are_value_errors() -> None:
    with pytest.raises(ValueError, match="model_type") as error:
        build_graph({})
    assert isinstance(error.value, PocketlmError)
    assert error.value.code == "config"
